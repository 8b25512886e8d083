//! The figures of one run: each with its target, if it has one.

use std::fmt;
use std::time::Duration;

/// One figure.
struct Figure {
    name: String,
    value: String,
    target: Option<(String, bool)>,
}

/// All figures of one run.
#[derive(Default)]
pub struct Report(Vec<Figure>);

impl Report {
    /// A figure that only informs.
    pub fn note(&mut self, name: &str, value: impl fmt::Display) {
        self.0.push(Figure { name: name.to_owned(), value: value.to_string(), target: None });
    }

    /// A figure that shall not be below `target`.
    pub fn at_least(&mut self, name: &str, value: f64, target: f64) {
        let target = Some((format!("at least {target:.2}"), value >= target));
        self.0.push(Figure { name: name.to_owned(), value: format!("{value:.2}"), target });
    }

    /// A figure that shall not be above `target`.
    pub fn at_most(&mut self, name: &str, value: f64, target: f64) {
        let target = Some((format!("at most {target:.2}"), value <= target));
        self.0.push(Figure { name: name.to_owned(), value: format!("{value:.2}"), target });
    }

    /// Whether every figure with a target reaches it.
    pub fn all_reached(&self) -> bool {
        self.0.iter().all(|figure| figure.target.as_ref().is_none_or(|(_, reached)| *reached))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.0.iter().map(|figure| figure.name.len()).max().unwrap_or_default();
        let value = self.0.iter().map(|figure| figure.value.len()).max().unwrap_or_default();
        for figure in &self.0 {
            write!(f, "{:name$}  {:>value$}", figure.name, figure.value)?;
            match &figure.target {
                Some((target, true)) => writeln!(f, "  reached ({target})")?,
                Some((target, false)) => writeln!(f, "  MISSED ({target})")?,
                None => writeln!(f)?,
            }
        }
        Ok(())
    }
}

/// The middle of the values; of an even number the lower of the two.
pub fn median<T: PartialOrd + Copy>(values: &[T]) -> T {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| a.partial_cmp(b).expect("measured values can be compared"));
    sorted[(sorted.len() - 1) / 2]
}

/// Milliseconds with one decimal.
pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
