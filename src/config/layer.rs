//! One layer of values on its way into figment, with the source of each. Only texts that were already given their
//! type come in here, so that figment guesses nothing.

use std::collections::BTreeMap;

use figment::value::{Dict, Map, Value};
use figment::{Error, Metadata, Profile, Provider};

use crate::config::source::{Source, dotted};

/// Values by key path, and where each came from. There is no `Debug`: the values may be secrets.
#[derive(Clone, Default)]
pub struct Layer {
    /// The values.
    pub values: Dict,
    /// The source of each leaf, by dotted path.
    pub sources: BTreeMap<String, Source>,
}

impl Layer {
    /// Puts one value in.
    pub fn insert<S: AsRef<str>>(&mut self, path: &[S], value: Value, source: Source) {
        insert(&mut self.values, path, value);
        self.sources.insert(dotted(path), source);
    }

    /// Puts an empty section in, if there is none.
    pub fn ensure<S: AsRef<str>>(&mut self, path: &[S]) {
        if self.get(path).is_none() {
            insert(&mut self.values, path, Value::from(Dict::new()));
        }
    }

    /// Adds what another layer has; where both have a leaf, the other one's stays.
    pub fn join(&mut self, other: Self) {
        join(&mut self.values, other.values);
        self.sources.extend(other.sources);
    }

    /// The value at a path.
    pub fn get<S: AsRef<str>>(&self, path: &[S]) -> Option<&Value> {
        get(&self.values, path)
    }
}

impl Provider for &Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named("layer")
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

/// The value at a path.
pub fn get<'a, S: AsRef<str>>(values: &'a Dict, path: &[S]) -> Option<&'a Value> {
    let (last, above) = path.split_last()?;
    let inner = above.iter().try_fold(values, |dict, name| dict.get(name.as_ref()).and_then(Value::as_dict))?;
    inner.get(last.as_ref())
}

fn join(values: &mut Dict, more: Dict) {
    for (name, value) in more {
        match (values.get_mut(&name), value) {
            (Some(Value::Dict(_, inner)), Value::Dict(_, more)) => join(inner, more),
            (_, value) => {
                values.insert(name, value);
            }
        }
    }
}

/// Puts one value in at a path.
pub fn insert<S: AsRef<str>>(values: &mut Dict, path: &[S], value: Value) {
    match path {
        [] => {}
        [name] => {
            values.insert(name.as_ref().to_owned(), value);
        }
        [name, rest @ ..] => {
            let inner = values.entry(name.as_ref().to_owned()).or_insert_with(|| Value::from(Dict::new()));
            if let Value::Dict(_, inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}
