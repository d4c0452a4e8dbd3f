//! One object, held to the version that was planned, as a source of Parquet bytes.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore};
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

use super::list::InputFile;
use super::location::Location;
use super::runtime::IoRuntime;

/// Ranges closer than this are read in one request: a request costs more than bytes not needed.
const COALESCE_BYTES: u64 = 256 << 10;

/// Footers are mostly smaller than this, and are then read in one request.
const FOOTER_BYTES: usize = 64 << 10;

/// An object that must still be what was listed: another etag or size is a failed precondition.
#[derive(Clone, Debug)]
pub(super) struct PlannedObject {
    runtime: IoRuntime,
    store: Arc<dyn ObjectStore>,
    path: Path,
    bytes: u64,
    etag: Option<String>,
}

impl PlannedObject {
    pub(super) fn new(
        location: &Location,
        file: &InputFile,
    ) -> std::result::Result<Self, object_store::Error> {
        let path = Path::parse(&file.key)?;
        let (store, etag) = (location.store.clone(), file.etag.clone());
        Ok(Self { runtime: location.runtime.clone(), store, path, bytes: file.bytes, etag })
    }

    /// The bytes of one range.
    pub(super) async fn get(&self, range: Range<u64>) -> Result<Bytes> {
        self.check(&range)?;
        self.fetch(range).await.map_err(|error| ParquetError::External(Box::new(error)))
    }

    /// The same, of a range that is known to lie within the object.
    pub(super) async fn fetch(&self, range: Range<u64>) -> object_store::Result<Bytes> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let _permit = self.runtime.reserve(range.end - range.start).await;
        let options = GetOptions {
            if_match: self.etag.clone(),
            range: Some(range.into()),
            ..Default::default()
        };
        let found = self.store.get_opts(&self.path, options).await?;
        if found.meta.size != self.bytes {
            let source = format!("{} bytes, planned {}", found.meta.size, self.bytes).into();
            let path = self.path.to_string();
            return Err(object_store::Error::Precondition { path, source });
        }
        found.bytes().await
    }

    /// Offsets come from the footer, which may lie; a store answers such ranges in odd ways.
    fn check(&self, range: &Range<u64>) -> Result<()> {
        if range.start > range.end || range.end > self.bytes {
            let end = self.bytes;
            return Err(ParquetError::EOF(format!(
                "{range:?} lies outside the file's {end} bytes"
            )));
        }
        Ok(())
    }
}

impl AsyncFileReader for PlannedObject {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes>> {
        self.get(range).boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>>> {
        async move {
            ranges.iter().try_for_each(|range| self.check(range))?;
            let fetch = |range| self.fetch(range);
            object_store::coalesce_ranges(&ranges, fetch, COALESCE_BYTES)
                .await
                .map_err(|error| ParquetError::External(Box::new(error)))
        }
        .boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>>> {
        async move {
            let bytes = self.bytes;
            let metadata = ParquetMetaDataReader::new()
                .with_arrow_reader_options(options)
                .with_prefetch_hint(Some(FOOTER_BYTES))
                .load_and_finish(self, bytes)
                .await?;
            Ok(Arc::new(metadata))
        }
        .boxed()
    }
}
