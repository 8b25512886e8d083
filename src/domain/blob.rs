//! A reference that stands for a large output in state and event. Storing and fetching what it names is the Redis
//! client's.

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

/// The one member of a value that is a reference.
const MEMBER: &str = "$blob";

/// Bytes of a reference at the most: its key has three ids of up to 256 characters.
const LONGEST: usize = 16 * 1024;

/// What an output is stored as.
const JSON: &str = "application/json";

/// Where an output is stored, and how to tell that it is the right one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRef {
    /// The key.
    pub key: String,
    /// Its length.
    pub bytes: u64,
    /// Its media type.
    #[serde(rename = "type")]
    pub media_type: String,
    /// Its digest in lower-case hex.
    pub sha256: String,
}

impl BlobRef {
    /// The reference to `output`, which is stored as `key`.
    pub fn new(key: String, output: &RawValue) -> Self {
        let bytes = output.get().as_bytes();
        Self { key, bytes: bytes.len() as u64, media_type: String::from(JSON), sha256: digest(bytes) }
    }

    /// The reference as it stands in place of the output.
    pub fn to_value(&self) -> Value {
        serde_json::json!({ MEMBER: self })
    }

    /// The same as text.
    pub fn to_raw(&self) -> Box<RawValue> {
        serde_json::value::to_raw_value(&self.to_value()).expect("a reference has string keys")
    }

    /// Reads a reference; none if the value is an ordinary one.
    pub fn of(value: &Value) -> Option<Self> {
        let members = value.as_object().filter(|members| members.len() == 1)?;
        Self::deserialize(members.get(MEMBER)?).ok()
    }

    /// The same of a value that is not taken apart yet; a large one is not looked into, for a reference is short.
    pub fn of_raw(value: &RawValue) -> Option<Self> {
        let text = value.get();
        if text.len() > LONGEST || !text.contains(MEMBER) {
            return None;
        }
        Self::of(&serde_json::from_str(text).ok()?)
    }

    /// Whether these bytes are what the reference was made for.
    pub fn fits(&self, bytes: &[u8]) -> bool {
        self.bytes == bytes.len() as u64 && self.sha256 == digest(bytes)
    }
}

fn digest(bytes: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn raw(value: &Value) -> Box<RawValue> {
        serde_json::value::to_raw_value(value).expect("JSON")
    }

    #[test]
    fn a_reference_names_key_size_type_and_digest_and_is_found_again() {
        let output = raw(&json!({"a": 1}));
        let made = BlobRef::new(String::from("dago:blob:g:n:r"), &output);
        let written: Value = serde_json::from_str(made.to_raw().get()).expect("JSON");
        assert_eq!(
            written,
            json!({"$blob": {
                "key": "dago:blob:g:n:r", "bytes": 7, "type": "application/json",
                "sha256": "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862",
            }})
        );
        assert_eq!(BlobRef::of(&written), Some(made.clone()));
        assert_eq!(BlobRef::of_raw(&raw(&written)), Some(made.clone()));
        assert!(made.fits(br#"{"a":1}"#) && !made.fits(br#"{"a":2}"#) && !made.fits(b""));
    }

    #[test]
    fn ordinary_values_are_no_references() {
        for value in [json!(null), json!({}), json!({"$blob": "k"}), json!([{"$blob": {}}])] {
            assert_eq!((BlobRef::of(&value), BlobRef::of_raw(&raw(&value))), (None, None), "{value}");
        }
        let mut more = json!({"$blob": {"key": "k", "bytes": 1, "type": "t", "sha256": "s"}});
        assert!(BlobRef::of(&more).is_some());
        more["and"] = json!(1);
        assert_eq!(BlobRef::of(&more), None);
    }
}
