//! What the S3 server keeps: one bucket in memory, without a word of HTTP.
//!
//! Callers hold all of it behind one mutex, so a condition and the write it guards are one step.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::SystemTime;

use bytes::Bytes;
use s3s::dto::{ETag, ETagCondition};
use s3s::{S3Result, s3_error};
use sha2::{Digest, Sha256};

/// As in S3, every part of an upload but the last has to be at least so large.
const SMALLEST_PART: usize = 5 << 20;

/// One stored object.
#[derive(Clone)]
pub(crate) struct Stored {
    pub(crate) bytes: Bytes,
    pub(crate) tag: String,
    pub(crate) modified: SystemTime,
}

impl Stored {
    fn new(bytes: Bytes, tag: String) -> Self {
        Self { bytes, tag, modified: now() }
    }

    pub(crate) fn e_tag(&self) -> Option<ETag> {
        Some(ETag::Strong(self.tag.clone()))
    }
}

/// A multipart upload that is neither completed nor aborted.
pub(crate) struct Upload {
    pub(crate) key: String,
    pub(crate) initiated: SystemTime,
    parts: BTreeMap<i32, Stored>,
}

/// The conditions of a write.
#[derive(Default)]
pub(crate) struct Conditions {
    pub(crate) if_match: Option<ETagCondition>,
    pub(crate) if_none_match: Option<ETagCondition>,
}

/// One page of a listing.
#[derive(Default)]
pub(crate) struct Page {
    pub(crate) objects: Vec<(String, Stored)>,
    pub(crate) prefixes: Vec<String>,
    /// What to go on after; `None` on the last page.
    pub(crate) next: Option<String>,
}

/// Which keys a listing asks for.
#[derive(Default)]
pub(crate) struct Question {
    pub(crate) prefix: String,
    pub(crate) delimiter: String,
    /// A key, or a common prefix that an earlier page gave.
    pub(crate) after: String,
    pub(crate) limit: usize,
}

/// The one bucket.
#[derive(Default)]
pub(crate) struct Backend {
    pub(crate) objects: BTreeMap<String, Stored>,
    pub(crate) uploads: BTreeMap<String, Upload>,
    /// Makes the store one that accepts conditions and does not look at them.
    pub(crate) ignores_preconditions: bool,
    uploads_begun: u64,
}

/// Stores date what they hold by their own clock, and clients may look at its age.
#[expect(clippy::disallowed_methods, reason = "this is the clock of a store, not the product's")]
fn now() -> SystemTime {
    SystemTime::now()
}

/// A tag of the content alone, as S3's is: equal bytes have equal tags.
fn tag_of(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))[..32].to_owned()
}

/// Whether an object, if there is one, meets a condition.
fn meets(stored: Option<&Stored>, condition: &ETagCondition) -> bool {
    stored.is_some_and(|stored| {
        condition.as_etag().is_none_or(|tag| tag.as_strong() == Some(stored.tag.as_str()))
    })
}

impl Backend {
    pub(crate) fn get(&self, key: &str) -> S3Result<&Stored> {
        self.objects.get(key).ok_or_else(|| s3_error!(NoSuchKey))
    }

    /// An object to be read under `conditions`.
    pub(crate) fn read(&self, key: &str, conditions: &Conditions) -> S3Result<Stored> {
        let stored = self.get(key)?;
        if conditions.if_match.as_ref().is_some_and(|asked| !meets(Some(stored), asked)) {
            return Err(s3_error!(PreconditionFailed));
        }
        if conditions.if_none_match.as_ref().is_some_and(|asked| meets(Some(stored), asked)) {
            return Err(s3_error!(NotModified));
        }
        Ok(stored.clone())
    }

    pub(crate) fn put(
        &mut self,
        key: &str,
        bytes: Bytes,
        conditions: &Conditions,
    ) -> S3Result<Stored> {
        let tag = tag_of(&bytes);
        self.replace(key, Stored::new(bytes, tag), conditions)
    }

    /// Checks the conditions and writes, in the one step that the caller's lock makes of it.
    fn replace(&mut self, key: &str, stored: Stored, conditions: &Conditions) -> S3Result<Stored> {
        if !self.ignores_preconditions {
            self.check(key, conditions)?;
        }
        self.objects.insert(key.to_owned(), stored.clone());
        Ok(stored)
    }

    fn check(&self, key: &str, conditions: &Conditions) -> S3Result<()> {
        let now = self.objects.get(key);
        if conditions.if_none_match.as_ref().is_some_and(|asked| meets(now, asked)) {
            return Err(s3_error!(PreconditionFailed));
        }
        match &conditions.if_match {
            // S3 answers 404 and not 412 when there is nothing to match.
            Some(_) if now.is_none() => Err(s3_error!(NoSuchKey)),
            Some(asked) if !meets(now, asked) => Err(s3_error!(PreconditionFailed)),
            _ => Ok(()),
        }
    }

    pub(crate) fn list(&self, question: &Question) -> Page {
        let mut page = Page::default();
        let mut last = String::new();
        let after = (Bound::Excluded(question.after.clone()), Bound::Unbounded);
        for (key, stored) in self.objects.range::<String, _>(after) {
            let Some(rest) = key.strip_prefix(&question.prefix) else { continue };
            let common = common_prefix(question, rest);
            // All keys under a common prefix are the one row that was given for them already.
            if common.as_ref().is_some_and(|common| *common == last || *common == question.after) {
                continue;
            }
            if page.objects.len() + page.prefixes.len() == question.limit {
                page.next = Some(last);
                break;
            }
            last = common.clone().unwrap_or_else(|| key.clone());
            match common {
                Some(common) => page.prefixes.push(common),
                None => page.objects.push((key.clone(), stored.clone())),
            }
        }
        page
    }

    pub(crate) fn begin_upload(&mut self, key: &str) -> String {
        self.uploads_begun += 1;
        let id = format!("upload-{}", self.uploads_begun);
        let initiated = now();
        let upload = Upload { key: key.to_owned(), initiated, parts: BTreeMap::new() };
        self.uploads.insert(id.clone(), upload);
        id
    }

    pub(crate) fn put_part(
        &mut self,
        key: &str,
        id: &str,
        number: i32,
        bytes: Bytes,
    ) -> S3Result<Stored> {
        self.upload(key, id)?;
        let tag = tag_of(&bytes);
        let stored = Stored::new(bytes, tag);
        let upload = self.uploads.get_mut(id).ok_or_else(|| s3_error!(NoSuchUpload))?;
        upload.parts.insert(number, stored.clone());
        Ok(stored)
    }

    fn upload(&self, key: &str, id: &str) -> S3Result<&Upload> {
        let upload = self.uploads.get(id).filter(|upload| upload.key == key);
        upload.ok_or_else(|| s3_error!(NoSuchUpload))
    }

    /// Makes an object of the parts named; a refused condition leaves the upload as it was.
    pub(crate) fn complete(
        &mut self,
        key: &str,
        id: &str,
        named: &[(i32, Option<String>)],
        conditions: &Conditions,
    ) -> S3Result<Stored> {
        let parts = self.upload(key, id)?.named(named)?;
        let whole = parts.iter().map(|part| part.bytes.as_ref()).collect::<Vec<_>>().concat();
        let tags: String = parts.iter().map(|part| part.tag.as_str()).collect();
        let tag = format!("{}-{}", tag_of(tags.as_bytes()), parts.len());
        let stored = self.replace(key, Stored::new(whole.into(), tag), conditions)?;
        self.uploads.remove(id);
        Ok(stored)
    }

    pub(crate) fn abort(&mut self, key: &str, id: &str) -> S3Result<()> {
        self.upload(key, id)?;
        self.uploads.remove(id);
        Ok(())
    }
}

impl Upload {
    /// The parts named, which must be there, in order, and large enough.
    fn named(&self, named: &[(i32, Option<String>)]) -> S3Result<Vec<Stored>> {
        if !named.is_sorted_by(|left, right| left.0 < right.0) {
            return Err(s3_error!(InvalidPartOrder));
        }
        let found = named.iter().map(|(number, tag)| {
            let part = self.parts.get(number);
            part.filter(|part| tag.as_ref().is_none_or(|tag| *tag == part.tag)).cloned()
        });
        let parts: Option<Vec<Stored>> = found.collect();
        let parts = parts.filter(|parts| !parts.is_empty());
        let parts = parts.ok_or_else(|| s3_error!(InvalidPart))?;
        if parts[..parts.len() - 1].iter().any(|part| part.bytes.len() < SMALLEST_PART) {
            return Err(s3_error!(EntityTooSmall));
        }
        Ok(parts)
    }
}

/// The common prefix that stands for a key, given what follows the prefix asked for.
fn common_prefix(question: &Question, rest: &str) -> Option<String> {
    if question.delimiter.is_empty() {
        return None;
    }
    let at = rest.find(&question.delimiter)? + question.delimiter.len();
    Some(format!("{}{}", question.prefix, &rest[..at]))
}
