//! The S3 operations of the server: requests to calls of the backend, and back.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use s3s::dto::*;
use s3s::{Body, S3, S3Request, S3Response, S3Result, s3_error};

use super::backend::{Conditions, Question, Stored};
use super::server::Shared;

/// S3 never gives more keys in one page.
const LARGEST_PAGE: i32 = 1_000;

/// A continuation token is this and the last row of the page, so that it is no key by itself.
const TOKEN: &str = "after:";

/// The operations that the server knows; all others are answered 501.
pub(super) struct Operations(pub(super) Arc<Shared>);

type Answer<T> = S3Result<S3Response<T>>;

async fn read_all(body: Option<StreamingBlob>) -> S3Result<Bytes> {
    let Some(mut body) = body else { return Ok(Bytes::new()) };
    let mut all = Vec::new();
    while let Some(chunk) = body.try_next().await.map_err(|_| s3_error!(IncompleteBody))? {
        all.extend_from_slice(&chunk);
    }
    Ok(all.into())
}

/// The bytes asked for, and the header that says which they are.
fn ranged(stored: &Stored, range: Option<Range>) -> S3Result<(Bytes, Option<String>)> {
    let Some(range) = range else { return Ok((stored.bytes.clone(), None)) };
    let whole = stored.bytes.len();
    let span = range.check(whole as u64)?;
    let header = format!("bytes {}-{}/{whole}", span.start, span.end - 1);
    let span = usize::try_from(span.start).unwrap()..usize::try_from(span.end).unwrap();
    Ok((stored.bytes.slice(span), Some(header)))
}

fn length(bytes: &Bytes) -> Option<i64> {
    Some(i64::try_from(bytes.len()).unwrap())
}

fn listed((key, stored): (String, Stored)) -> Object {
    Object {
        e_tag: stored.e_tag(),
        last_modified: Some(stored.modified.into()),
        size: length(&stored.bytes),
        key: Some(key),
        ..Object::default()
    }
}

fn question(input: &ListObjectsV2Input) -> S3Result<Question> {
    let after = match &input.continuation_token {
        Some(token) => token.strip_prefix(TOKEN).ok_or_else(|| s3_error!(InvalidArgument))?,
        None => input.start_after.as_deref().unwrap_or_default(),
    };
    let limit = input.max_keys.unwrap_or(LARGEST_PAGE).clamp(0, LARGEST_PAGE);
    Ok(Question {
        prefix: input.prefix.clone().unwrap_or_default(),
        delimiter: input.delimiter.clone().unwrap_or_default(),
        after: after.to_owned(),
        limit: usize::try_from(limit).unwrap(),
    })
}

#[async_trait::async_trait]
impl S3 for Operations {
    async fn put_object(&self, request: S3Request<PutObjectInput>) -> Answer<PutObjectOutput> {
        let input = request.input;
        let bytes = read_all(input.body).await?;
        let conditions =
            Conditions { if_match: input.if_match, if_none_match: input.if_none_match };
        self.0.note_key(input.ssekms_key_id);
        let stored = self.0.backend().put(&input.key, bytes, &conditions)?;
        let e_tag = stored.e_tag();
        Ok(S3Response::new(PutObjectOutput { e_tag, ..PutObjectOutput::default() }))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> Answer<GetObjectOutput> {
        let input = request.input;
        let conditions =
            Conditions { if_match: input.if_match, if_none_match: input.if_none_match };
        let stored = self.0.backend().read(&input.key, &conditions)?;
        let (bytes, content_range) = ranged(&stored, input.range)?;
        Ok(S3Response::new(GetObjectOutput {
            content_length: length(&bytes),
            content_range,
            body: Some(Body::from(bytes).into()),
            e_tag: stored.e_tag(),
            last_modified: Some(stored.modified.into()),
            ..GetObjectOutput::default()
        }))
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> Answer<HeadObjectOutput> {
        let input = request.input;
        let conditions =
            Conditions { if_match: input.if_match, if_none_match: input.if_none_match };
        let stored = self.0.backend().read(&input.key, &conditions)?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: length(&stored.bytes),
            e_tag: stored.e_tag(),
            last_modified: Some(stored.modified.into()),
            ..HeadObjectOutput::default()
        }))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> Answer<ListObjectsV2Output> {
        let input = request.input;
        let page = self.0.backend().list(&question(&input)?);
        let count = page.objects.len() + page.prefixes.len();
        let prefixes = page.prefixes.into_iter();
        let common = prefixes.map(|prefix| CommonPrefix { prefix: Some(prefix) }).collect();
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: input.prefix,
            delimiter: input.delimiter,
            max_keys: input.max_keys.or(Some(LARGEST_PAGE)),
            key_count: Some(i32::try_from(count).unwrap()),
            is_truncated: Some(page.next.is_some()),
            next_continuation_token: page.next.map(|last| format!("{TOKEN}{last}")),
            continuation_token: input.continuation_token,
            contents: Some(page.objects.into_iter().map(listed).collect()),
            common_prefixes: Some(common),
            ..ListObjectsV2Output::default()
        }))
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> Answer<DeleteObjectOutput> {
        self.0.backend().objects.remove(&request.input.key);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> Answer<DeleteObjectsOutput> {
        let Delete { objects, quiet } = request.input.delete;
        let mut backend = self.0.backend();
        let keys: Vec<String> = objects.into_iter().map(|object| object.key).collect();
        keys.iter().for_each(|key| drop(backend.objects.remove(key)));
        let rows = keys.into_iter();
        let rows = rows.map(|key| DeletedObject { key: Some(key), ..DeletedObject::default() });
        let deleted = (quiet != Some(true)).then(|| rows.collect());
        Ok(S3Response::new(DeleteObjectsOutput { deleted, ..DeleteObjectsOutput::default() }))
    }

    async fn copy_object(&self, request: S3Request<CopyObjectInput>) -> Answer<CopyObjectOutput> {
        let CopySource::Bucket { key: source, .. } = &request.input.copy_source else {
            return Err(s3_error!(NotImplemented));
        };
        let mut backend = self.0.backend();
        let bytes = backend.get(source)?.bytes.clone();
        let stored = backend.put(&request.input.key, bytes, &Conditions::default())?;
        let result = CopyObjectResult {
            e_tag: stored.e_tag(),
            last_modified: Some(stored.modified.into()),
            ..CopyObjectResult::default()
        };
        let copy_object_result = Some(result);
        Ok(S3Response::new(CopyObjectOutput { copy_object_result, ..CopyObjectOutput::default() }))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> Answer<CreateMultipartUploadOutput> {
        let input = request.input;
        self.0.note_key(input.ssekms_key_id);
        let id = self.0.backend().begin_upload(&input.key);
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(id),
            ..CreateMultipartUploadOutput::default()
        }))
    }

    async fn upload_part(&self, request: S3Request<UploadPartInput>) -> Answer<UploadPartOutput> {
        let input = request.input;
        let bytes = read_all(input.body).await?;
        let (id, number) = (input.upload_id, input.part_number);
        let stored = self.0.backend().put_part(&input.key, &id, number, bytes)?;
        let e_tag = stored.e_tag();
        Ok(S3Response::new(UploadPartOutput { e_tag, ..UploadPartOutput::default() }))
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> Answer<CompleteMultipartUploadOutput> {
        let input = request.input;
        let named = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        let named = named.into_iter().map(|part| {
            let tag = part.e_tag.map(ETag::into_value);
            Some((part.part_number?, tag))
        });
        let named: Option<Vec<(i32, Option<String>)>> = named.collect();
        let named = named.ok_or_else(|| s3_error!(MalformedXML))?;
        let conditions =
            Conditions { if_match: input.if_match, if_none_match: input.if_none_match };
        let id = input.upload_id;
        let stored = self.0.backend().complete(&input.key, &id, &named, &conditions)?;
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: stored.e_tag(),
            ..CompleteMultipartUploadOutput::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> Answer<AbortMultipartUploadOutput> {
        self.0.backend().abort(&request.input.key, &request.input.upload_id)?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> Answer<ListMultipartUploadsOutput> {
        let input = request.input;
        let prefix = input.prefix.clone().unwrap_or_default();
        let backend = self.0.backend();
        let uploads = backend.uploads.iter().filter(|(_, upload)| upload.key.starts_with(&prefix));
        let rows: BTreeSet<_> = uploads.map(|(id, upload)| (&upload.key, id)).collect();
        let rows = rows.into_iter().map(|(key, id)| MultipartUpload {
            key: Some(key.clone()),
            upload_id: Some(id.clone()),
            initiated: Some(backend.uploads[id].initiated.into()),
            ..MultipartUpload::default()
        });
        Ok(S3Response::new(ListMultipartUploadsOutput {
            bucket: Some(input.bucket),
            prefix: input.prefix,
            is_truncated: Some(false),
            uploads: Some(rows.collect()),
            ..ListMultipartUploadsOutput::default()
        }))
    }
}
