//! Parts of a JSON text by name: found ones are borrowed with their bytes, the others are skipped undecoded. No I/O.

use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

/// The members of an object whose names are wanted, in order.
pub(super) fn of_object(
    object: &str,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<(String, &RawValue)>, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(object);
    let found = deserializer.deserialize_map(Members { wanted, borrow: PhantomData })?;
    deserializer.end().map(|()| found)
}

/// The last object of a list whose member `id` is this.
pub(super) fn by_id<'a>(list: &'a str, id: &str) -> Result<Option<&'a RawValue>, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(list);
    let found = deserializer.deserialize_seq(Listed(id))?;
    deserializer.end().map(|()| found)
}

struct Members<'a, F> {
    wanted: F,
    borrow: PhantomData<&'a str>,
}

impl<'a, F: Fn(&str) -> bool> Visitor<'a> for Members<'a, F> {
    type Value = Vec<(String, &'a RawValue)>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = Vec::new();
        while let Some(name) = map.next_key_seed(Name(&self.wanted))? {
            match name {
                Some(name) => found.push((name, map.next_value()?)),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(found)
    }
}

/// A member's name, copied only if it is wanted.
struct Name<'f, F>(&'f F);

impl<'a, F: Fn(&str) -> bool> DeserializeSeed<'a> for Name<'_, F> {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<F: Fn(&str) -> bool> Visitor<'_> for Name<'_, F> {
    type Value = Option<String>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok((self.0)(name).then(|| String::from(name)))
    }
}

struct Listed<'n>(&'n str);

impl<'a> Visitor<'a> for Listed<'_> {
    type Value = Option<&'a RawValue>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of nodes")
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        #[derive(Deserialize)]
        struct Id {
            id: Option<Value>,
        }
        let mut found = None;
        while let Some(node) = list.next_element::<&'a RawValue>()? {
            let id = serde_json::from_str::<Id>(node.get()).ok().and_then(|node| node.id);
            if id.as_ref().and_then(Value::as_str) == Some(self.0) {
                found = Some(node);
            }
        }
        Ok(found)
    }
}
