//! What a node may use in all, checked before each call of a model. It counts what the journal has on record, so a
//! crash gives nothing back.

use crate::domain::node::Limits;
use crate::domain::outcome::{Failure, Spent};
use crate::domain::price::Cost;

/// What a node may use in all.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Budget {
    max_tokens: Option<u64>,
    max_cost: Option<Cost>,
}

impl Budget {
    /// The budgets of a node.
    pub fn new(limits: &Limits) -> Self {
        Self { max_tokens: limits.max_tokens, max_cost: limits.max_cost_usd.map(Cost::usd) }
    }

    /// Whether money is limited.
    pub fn is_of_money(&self) -> bool {
        self.max_cost.is_some()
    }

    /// Fails where a budget is used up, so that no further call is made.
    pub fn check(&self, spent: &Spent) -> Result<(), Failure> {
        let usage = spent.usage.unwrap_or_default();
        let tokens = usage.input_tokens.saturating_add(usage.output_tokens);
        if let Some(limit) = self.max_tokens.filter(|limit| tokens >= *limit) {
            return Err(Failure::permanent(
                "token_limit",
                format!("the node has used {tokens} of {limit} tokens; raise `limits.max_tokens`"),
            ));
        }
        let cost = usage.cost.unwrap_or_default();
        if let Some(limit) = self.max_cost.filter(|limit| cost >= *limit) {
            return Err(Failure::permanent(
                "cost_limit",
                format!("the node has used {cost} of {limit}; raise `limits.max_cost_usd`"),
            ));
        }
        Ok(())
    }
}

/// A budget of money that nobody could hold the node to.
pub(super) fn no_price(model: Option<&str>) -> Failure {
    let model =
        model.map_or_else(|| String::from("the provider's default model"), |model| format!("the model `{model}`"));
    Failure::configuration(
        "price_unknown",
        format!("`limits.max_cost_usd` is set, but {model} has no price; add it to `llm.prices`"),
    )
}
