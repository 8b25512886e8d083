//! The prices of one provider's models: its own, else those that hold for every provider.

use std::collections::BTreeMap;

use crate::config::{LlmSection, ProviderConfig};
use crate::domain::price::Price;

/// The prices of one provider's models.
#[derive(Debug, Clone, Default)]
pub struct Prices {
    by_model: BTreeMap<String, Price>,
    default_model: String,
}

impl Prices {
    /// The prices that hold for a provider.
    pub fn new(section: &LlmSection, provider: &ProviderConfig) -> Self {
        let all = section.prices.iter().chain(&provider.prices);
        let by_model = all.filter_map(|(model, price)| Some((model.clone(), price.price()?))).collect();
        Self { by_model, default_model: provider.model.clone() }
    }

    /// The price of a model, if it has one.
    pub fn of(&self, model: &str) -> Option<&Price> {
        self.by_model.get(model)
    }

    /// Whether the model that a node names, or the provider's own, has a price.
    pub fn knows(&self, model: Option<&str>) -> bool {
        self.of(model.unwrap_or(&self.default_model)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, PriceConfig};

    #[test]
    fn a_providers_own_prices_go_before_those_for_all() {
        let mut section = Config::default().llm;
        let price = |input| PriceConfig { input: Some(input), output: Some(9.0), ..PriceConfig::default() };
        section.prices.insert(String::from("other"), price(3.0));
        let mut provider = ProviderConfig::default();
        provider.prices.insert(String::from("other"), price(4.0));
        let prices = Prices::new(&section, &provider);
        let other = prices.of("other").expect("a price");
        assert_eq!((other.input, other.cache_read, other.cache_write, other.output), (4.0, 4.0, 4.0, 9.0));
        assert_eq!(prices.of("claude-sonnet-5-5").expect("it comes with the worker").output, 10.0);
        assert!(prices.knows(None) && prices.knows(Some("other")) && !prices.knows(Some("nobody")));
        assert!(Prices::new(&section, &ProviderConfig::default()).of("other").expect("for all").input < 4.0);
    }
}
