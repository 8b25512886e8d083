//! What tokens cost. Money is counted in whole millionths of a millionth of a dollar, so that many small sums add up
//! exactly; outside of the worker it is a number of US dollars.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::domain::message::Usage;

/// Parts of a dollar that are counted.
const PARTS: f64 = 1e12;

/// A sum of money.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost(u64);

impl Cost {
    /// A number of US dollars; less than nothing is nothing.
    pub fn usd(dollars: f64) -> Self {
        Self((dollars * PARTS).round() as u64)
    }

    /// In US dollars.
    pub fn as_usd(self) -> f64 {
        self.0 as f64 / PARTS
    }
}

impl std::ops::Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} USD", self.as_usd())
    }
}

impl Serialize for Cost {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.as_usd())
    }
}

impl<'de> Deserialize<'de> for Cost {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        f64::deserialize(deserializer).map(Self::usd)
    }
}

/// The price of a model in US dollars for a million tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Price {
    /// Tokens read.
    pub input: f64,
    /// Tokens written.
    pub output: f64,
    /// Tokens read from the provider's cache.
    pub cache_read: f64,
    /// Tokens written to the provider's cache.
    pub cache_write: f64,
}

impl Price {
    /// What these tokens cost.
    pub fn of(&self, usage: &Usage) -> Cost {
        let Usage { input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, .. } = *usage;
        let plain = input_tokens.saturating_sub(cache_read_tokens).saturating_sub(cache_write_tokens);
        let parts = [
            (plain, self.input),
            (output_tokens, self.output),
            (cache_read_tokens, self.cache_read),
            (cache_write_tokens, self.cache_write),
        ];
        let cost = |(tokens, per_million): (u64, f64)| Cost::usd(tokens as f64 * per_million / 1e6);
        parts.into_iter().map(cost).fold(Cost::default(), |sum, part| sum + part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cached_tokens_have_their_own_price_and_are_not_paid_twice() {
        let price = Price { input: 2.0, output: 10.0, cache_read: 0.2, cache_write: 2.5 };
        let usage = Usage {
            input_tokens: 1_000_000,
            output_tokens: 100_000,
            cache_read_tokens: 500_000,
            cache_write_tokens: 200_000,
            cost: None,
        };
        assert_eq!(price.of(&usage), Cost::usd(0.6 + 1.0 + 0.1 + 0.5));
    }

    #[test]
    fn small_sums_add_up_exactly_and_survive_being_written_down() {
        let token = Price { input: 0.1, output: 0.5, cache_read: 0.1, cache_write: 0.1 }
            .of(&Usage { input_tokens: 1, ..Usage::default() });
        let sum = (0..1_000_000).fold(Cost::default(), |sum, _| sum + token);
        assert_eq!((sum, sum.as_usd()), (Cost::usd(0.1), 0.1));
        for cost in [token, sum, Cost::default(), Cost::usd(123.456_789_012)] {
            let text = serde_json::to_string(&cost).expect("a number");
            assert_eq!(serde_json::from_str::<Cost>(&text).expect("a cost"), cost, "{text}");
        }
    }
}
