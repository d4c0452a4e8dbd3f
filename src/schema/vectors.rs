//! Byte layouts of vector files: FAISS flat indexes, `.npy` and `.fvecs`. Nothing is read or
//! written here.
//!
//! The number of rows is known before the first byte is written, so no header is ever patched.
//! All numbers are little-endian. FAISS files have no padding: the floats start at byte 45 or 82,
//! so they are never aligned and must not be cast.

use std::fmt;

/// Most dimensions that FAISS reads.
pub const DIMENSION_MAX: usize = 1 << 20;

/// Bytes of a FAISS type and the header behind it.
const HEADER_BYTES: usize = 37;

/// Where the floats start in a file without ids, and in one with them.
const FLOATS_AT: usize = HEADER_BYTES + 8;
const FLOATS_AT_WITH_IDS: usize = HEADER_BYTES + FLOATS_AT;

/// Bytes that [`parse_flat`] wants to see, fewer where the file is shorter.
pub const FLAT_PREFIX_BYTES: usize = FLOATS_AT_WITH_IDS;

/// How the vectors of a flat index are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// By inner product: higher is nearer.
    InnerProduct,
    /// By squared Euclidean distance: lower is nearer.
    L2,
}

impl Metric {
    /// The type that FAISS gives a flat index of this metric.
    fn kind(self) -> &'static [u8; 4] {
        match self {
            Self::InnerProduct => b"IxFI",
            Self::L2 => b"IxF2",
        }
    }

    fn code(self) -> i32 {
        match self {
            Self::InnerProduct => 0,
            Self::L2 => 1,
        }
    }
}

/// The kind of a vector file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VectorFormat {
    /// A FAISS IndexFlat, in an IndexIDMap2 where `with_ids`.
    Flat {
        /// How vectors are compared.
        metric: Metric,
        /// Whether ids follow the vectors; without, a vector's id is its row.
        with_ids: bool,
    },
    /// A NumPy array of shape (rows, dimension).
    Npy,
    /// Rows that each start with their dimension.
    Fvecs,
}

/// What a vector file holds, known before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VectorLayout {
    /// Its kind.
    pub format: VectorFormat,
    /// Number of vectors.
    pub n_rows: usize,
    /// Floats in each.
    pub dimension: usize,
}

impl VectorLayout {
    /// What comes before the first row.
    ///
    /// # Panics
    /// If the dimension is 0 or above [`DIMENSION_MAX`].
    pub fn header(&self) -> Vec<u8> {
        let dimension = self.dimension;
        assert!((1..=DIMENSION_MAX).contains(&dimension), "{dimension} dimensions");
        match self.format {
            VectorFormat::Flat { metric, with_ids } => self.flat_header(metric, with_ids),
            VectorFormat::Npy => self.npy_header(),
            VectorFormat::Fvecs => Vec::new(),
        }
    }

    /// What comes before the floats of each row.
    pub fn row_header(&self) -> Vec<u8> {
        match self.format {
            VectorFormat::Fvecs => (self.dimension as i32).to_le_bytes().to_vec(),
            _ => Vec::new(),
        }
    }

    /// What comes between the last row and the ids, one i64 each; `None` in a file without ids.
    pub fn ids_header(&self) -> Option<[u8; 8]> {
        let with_ids = matches!(self.format, VectorFormat::Flat { with_ids: true, .. });
        with_ids.then(|| (self.n_rows as u64).to_le_bytes())
    }

    fn flat_header(&self, metric: Metric, with_ids: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(FLOATS_AT_WITH_IDS);
        if with_ids {
            self.push_index(&mut out, b"IxM2", metric);
        }
        self.push_index(&mut out, metric.kind(), metric);
        let n_floats = self.n_rows as u64 * self.dimension as u64;
        out.extend(n_floats.to_le_bytes());
        out
    }

    /// The type of an index and the header that all indexes have.
    fn push_index(&self, out: &mut Vec<u8>, kind: &[u8; 4], metric: Metric) {
        // Two fields that FAISS writes and nobody reads.
        let unused = (1_i64 << 20).to_le_bytes();
        out.extend(kind);
        out.extend((self.dimension as i32).to_le_bytes());
        out.extend((self.n_rows as i64).to_le_bytes());
        out.extend(unused);
        out.extend(unused);
        // The index is trained: a flat one always is.
        out.push(1);
        out.extend(metric.code().to_le_bytes());
    }

    /// The same bytes as `numpy.save` writes: padded to a multiple of 64, which is 128 for every
    /// number of rows and dimensions.
    fn npy_header(&self) -> Vec<u8> {
        const TEXT_BYTES: u16 = 118;
        let shape = format!("({}, {})", self.n_rows, self.dimension);
        let text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
        let mut out = b"\x93NUMPY\x01\x00".to_vec();
        out.extend(TEXT_BYTES.to_le_bytes());
        out.extend(format!("{text:<0$}\n", usize::from(TEXT_BYTES) - 1).as_bytes());
        out
    }
}

/// Where things are in a FAISS flat file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlatFile {
    /// How vectors are compared.
    pub metric: Metric,
    /// Number of vectors.
    pub n_rows: u64,
    /// Floats in each.
    pub dimension: usize,
    /// The byte at which the floats start.
    pub floats_at: u64,
    /// The byte at which the ids start; `None` where a vector's id is its row.
    pub ids_at: Option<u64>,
}

/// Why a file is not a flat index that can be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The file ends before its header does.
    #[error("it has {bytes} bytes, too few for the header of a flat index; copy it again")]
    Truncated {
        /// Bytes of the file.
        bytes: u64,
    },
    /// The file is something else.
    #[error(
        "it holds {kind} at byte {at}, and only FAISS flat indexes can be read: IxFI (inner \
         product) or IxF2 (L2), alone or within IxM2 or IxMp"
    )]
    Kind {
        /// Where the type was looked for.
        at: usize,
        /// What was found.
        kind: Kind,
    },
    /// A field that cannot be.
    #[error("the {field} at byte {at} is {found}, expected {expected}; write the file again")]
    Field {
        /// The field.
        field: &'static str,
        /// Its place.
        at: usize,
        /// What it is.
        found: i128,
        /// What it should be.
        expected: String,
    },
    /// The file is longer or shorter than what it declares.
    #[error("its header declares {expected} bytes and it has {bytes}; copy it again")]
    Size {
        /// Bytes of the file.
        bytes: u64,
        /// Bytes that its header declares.
        expected: u128,
    },
}

/// The first four bytes of an index, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind([u8; 4]);

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// Reads the header of a FAISS flat file of `file_bytes` bytes from its first
/// [`FLAT_PREFIX_BYTES`] bytes, and holds all that it declares against each other and the size.
///
/// # Errors
/// [`LayoutError`] for what is no flat index, truncated, or contradicts itself.
///
/// # Panics
/// If `prefix` is shorter than both the file and [`FLAT_PREFIX_BYTES`].
pub fn parse_flat(prefix: &[u8], file_bytes: u64) -> Result<FlatFile, LayoutError> {
    assert!(prefix.len() as u64 >= file_bytes.min(FLAT_PREFIX_BYTES as u64), "a short prefix");
    let fields = Fields { prefix, file_bytes };
    let outer = match &fields.kind(0)? {
        b"IxM2" | b"IxMp" => Some(fields.header(0)?),
        _ => None,
    };
    let at = if outer.is_some() { HEADER_BYTES } else { 0 };
    let metric = fields.flat_metric(at)?;
    let header = fields.header(at)?;
    fields.check_header(at, header, metric, outer)?;
    let n_floats = header.n_rows as u128 * header.dimension as u128;
    let count_at = at + HEADER_BYTES;
    let count = fields.u64(count_at)?;
    fields.equal("number of floats", count_at, count.into(), n_floats as i128)?;
    let floats_at = (count_at + 8) as u64;
    let floats_end = u128::from(floats_at) + 4 * n_floats;
    let ids_bytes = if outer.is_some() { 8 + 8 * header.n_rows as u128 } else { 0 };
    let expected = floats_end + ids_bytes;
    if expected != file_bytes.into() {
        return Err(LayoutError::Size { bytes: file_bytes, expected });
    }
    // Everything lies within the file from here on, so all of it fits.
    Ok(FlatFile {
        metric,
        n_rows: header.n_rows as u64,
        dimension: header.dimension as usize,
        floats_at,
        ids_at: outer.map(|_| floats_end as u64 + 8),
    })
}

/// What every index starts with, as far as it matters.
#[derive(Clone, Copy, PartialEq)]
struct Header {
    dimension: i32,
    n_rows: i64,
    metric: i32,
}

/// The fields of a header, each checked to lie within the file.
struct Fields<'a> {
    prefix: &'a [u8],
    file_bytes: u64,
}

impl Fields<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> Result<[u8; N], LayoutError> {
        let found = self.prefix.get(at..at + N);
        let found = found.ok_or(LayoutError::Truncated { bytes: self.file_bytes })?;
        Ok(found.try_into().expect("a slice of N bytes"))
    }

    fn kind(&self, at: usize) -> Result<[u8; 4], LayoutError> {
        self.bytes(at)
    }

    fn u64(&self, at: usize) -> Result<u64, LayoutError> {
        Ok(u64::from_le_bytes(self.bytes(at)?))
    }

    fn header(&self, at: usize) -> Result<Header, LayoutError> {
        Ok(Header {
            dimension: i32::from_le_bytes(self.bytes(at + 4)?),
            n_rows: i64::from_le_bytes(self.bytes(at + 8)?),
            metric: i32::from_le_bytes(self.bytes(at + 33)?),
        })
    }

    fn flat_metric(&self, at: usize) -> Result<Metric, LayoutError> {
        match &self.kind(at)? {
            b"IxFI" => Ok(Metric::InnerProduct),
            b"IxF2" => Ok(Metric::L2),
            kind => Err(LayoutError::Kind { at, kind: Kind(*kind) }),
        }
    }

    /// Holds the header at `at` against its type, and against the index around it.
    fn check_header(
        &self,
        at: usize,
        header: Header,
        metric: Metric,
        outer: Option<Header>,
    ) -> Result<(), LayoutError> {
        let field = |field, at, found: i128, expected: &str| {
            Err(LayoutError::Field { field, at, found, expected: expected.to_owned() })
        };
        let dimension = header.dimension;
        if dimension < 1 || dimension as usize > DIMENSION_MAX {
            return field("dimension", at + 4, dimension.into(), "1 to 1048576");
        }
        if header.n_rows < 0 {
            return field("number of vectors", at + 8, header.n_rows.into(), "0 or more");
        }
        self.equal("metric", at + 33, header.metric.into(), metric.code().into())?;
        let Some(outer) = outer else { return Ok(()) };
        self.equal("dimension", 4, outer.dimension.into(), dimension.into())?;
        self.equal("number of vectors", 8, outer.n_rows.into(), header.n_rows.into())?;
        self.equal("metric", 33, outer.metric.into(), header.metric.into())
    }

    fn equal(
        &self,
        field: &'static str,
        at: usize,
        found: i128,
        expected: i128,
    ) -> Result<(), LayoutError> {
        if found == expected {
            return Ok(());
        }
        Err(LayoutError::Field { field, at, found, expected: expected.to_string() })
    }
}

/// Appends `floats` as they stand in every vector file.
pub fn push_floats(out: &mut Vec<u8>, floats: &[f32]) {
    let start = out.len();
    out.resize(start + 4 * floats.len(), 0);
    for (bytes, float) in out[start..].as_chunks_mut::<4>().0.iter_mut().zip(floats) {
        *bytes = float.to_le_bytes();
    }
}

/// The floats in `bytes`, which need not be aligned.
pub fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes))
}

/// The ids in `bytes`.
pub fn vector_ids(bytes: &[u8]) -> impl Iterator<Item = i64> {
    bytes.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes))
}
