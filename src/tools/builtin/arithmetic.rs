//! Reads an arithmetic expression the way mathematicians and most languages write it, and evaluates it with the
//! operators of `exmex`. That crate's own reader is not used: it takes `2^3^2` for 64, `-2^2` for 4, refuses `1e5` and
//! `max(1, max(2, 3))`, and says little about what is wrong and where.

use std::collections::HashMap;
use std::sync::LazyLock;

use exmex::{FloatOpsFactory, MakeOperators, Operator};

use crate::domain::node::nearest;

/// Parentheses, signs and powers within one another; each costs a few stack frames.
const MAX_DEPTH: usize = 64;

/// Why an expression has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Wrong {
    /// It cannot be read.
    #[error("{message} at character {at}")]
    Unreadable {
        /// What is wrong.
        message: String,
        /// Where, counted from 1.
        at: usize,
    },
    /// A step has no finite result.
    #[error("{step} {reason}")]
    NotFinite {
        /// The step.
        step: String,
        /// What comes of it.
        reason: &'static str,
    },
}

static OPERATORS: LazyLock<HashMap<&'static str, Operator<'static, f64>>> =
    LazyLock::new(|| FloatOpsFactory::<f64>::make().into_iter().map(|operator| (operator.repr(), operator)).collect());

/// Names that people write and `exmex` does not know.
fn canonical(name: &str) -> &str {
    match name {
        "pi" => "PI",
        "tau" => "TAU",
        "sign" => "signum",
        "ceiling" => "ceil",
        _ => name,
    }
}

/// Evaluates an expression; `value_of` gives the values of its variables.
pub(super) fn evaluate(text: &str, value_of: impl Fn(&str) -> Option<f64>) -> Result<f64, Wrong> {
    let mut reader = Reader { text, at: 0, depth: 0, value_of };
    let value = reader.sum()?;
    match reader.peek() {
        None => Ok(value),
        Some(other) => Err(reader.wrong(format!("an operator is expected instead of `{other}`"))),
    }
}

struct Reader<'a, F> {
    text: &'a str,
    /// Byte offset of the next character.
    at: usize,
    depth: usize,
    value_of: F,
}

impl<'a, F: Fn(&str) -> Option<f64>> Reader<'a, F> {
    fn sum(&mut self) -> Result<f64, Wrong> {
        let mut value = self.product()?;
        loop {
            value = match self.peek() {
                Some('+') => self.binary("+", value, Self::product)?,
                Some('-' | '−') => self.binary("-", value, Self::product)?,
                _ => return Ok(value),
            }
        }
    }

    fn product(&mut self) -> Result<f64, Wrong> {
        let mut value = self.signed()?;
        loop {
            value = match self.peek() {
                Some('*' | '×' | '·') => self.binary("*", value, Self::signed)?,
                Some('/' | '÷') => self.binary("/", value, Self::signed)?,
                Some('%') => {
                    self.next();
                    let divisor = self.signed()?;
                    finite(value % divisor, || format!("{value} % {divisor}"))?
                }
                _ => return Ok(value),
            }
        }
    }

    /// A sign binds less than a power: `-2^2` is -4.
    fn signed(&mut self) -> Result<f64, Wrong> {
        match self.peek() {
            Some('-' | '−') => {
                self.next();
                self.deeper(Self::signed).map(|value| -value)
            }
            Some('+') => {
                self.next();
                self.deeper(Self::signed)
            }
            _ => self.power(),
        }
    }

    /// Powers bind from the right: `2^3^2` is 512.
    fn power(&mut self) -> Result<f64, Wrong> {
        let base = self.operand()?;
        if self.peek() == Some('*') && self.text[self.at..].starts_with("**") {
            self.next();
        } else if self.peek() != Some('^') {
            return Ok(base);
        }
        self.binary("^", base, |reader| reader.deeper(Self::signed))
    }

    fn operand(&mut self) -> Result<f64, Wrong> {
        match self.peek() {
            Some('(') => self.group(),
            Some(first) if first.is_ascii_digit() || first == '.' => self.number(),
            Some(first) if first.is_alphabetic() || first == '_' => self.name(),
            Some(other) => Err(self.wrong(format!("a number is expected instead of `{other}`"))),
            None => Err(self.wrong("a number is missing")),
        }
    }

    fn group(&mut self) -> Result<f64, Wrong> {
        self.next();
        let value = self.deeper(Self::sum)?;
        self.close()?;
        Ok(value)
    }

    fn number(&mut self) -> Result<f64, Wrong> {
        let rest = &self.text[self.at..];
        let digits = |from: usize| rest[from..].bytes().take_while(u8::is_ascii_digit).count();
        let mut end = digits(0);
        if rest[end..].starts_with('.') {
            end += 1 + digits(end + 1);
        }
        if rest[end..].starts_with(['e', 'E']) {
            let sign = usize::from(rest[end + 1..].starts_with(['+', '-']));
            let exponent = digits(end + 1 + sign);
            if exponent > 0 {
                end += 1 + sign + exponent;
            }
        }
        let text = &rest[..end];
        let value = text.parse().map_err(|_| self.wrong(format!("`{text}` is not a number")))?;
        self.at += end;
        finite(value, || format!("the number {text}"))
    }

    fn name(&mut self) -> Result<f64, Wrong> {
        let start = self.at;
        let rest = &self.text[start..];
        let name = &rest[..rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len())];
        self.at += name.len();
        let called = self.peek() == Some('(');
        if !called && let Some(value) = (self.value_of)(name) {
            return finite(value, || format!("the value of `{name}`"));
        }
        match OPERATORS.get(canonical(name)) {
            Some(operator) if !called && operator.constant().is_some() => {
                Ok(operator.constant().expect("the guard says so"))
            }
            _ if called => self.call(name, start),
            _ => Err(self.unknown(name, start)),
        }
    }

    fn call(&mut self, name: &str, start: usize) -> Result<f64, Wrong> {
        let arguments = self.arguments()?;
        let step = || {
            let shown: Vec<String> = arguments.iter().map(f64::to_string).collect();
            format!("{name}({})", shown.join(", "))
        };
        let operator =
            OPERATORS.get(canonical(name)).filter(|operator| operator.repr().starts_with(char::is_alphabetic));
        let value = match (name, arguments.as_slice()) {
            // In half of the world this is the natural logarithm, in the other half the decimal one.
            ("log", [_]) => return Err(self.wrong_at("`log` is ambiguous: write ln, log2 or log10", start)),
            ("pow", [base, exponent]) => base.powf(*exponent),
            ("round", [value, digits]) => round(*value, *digits),
            ("min" | "max" | "atan2", [first, rest @ ..])
                if !rest.is_empty() && (name != "atan2" || rest.len() == 1) =>
            {
                let apply = operator.and_then(|operator| operator.bin().ok()).expect("exmex has these three").apply;
                rest.iter().fold(*first, |value, next| apply(value, *next))
            }
            (_, [value]) if operator.is_some_and(Operator::has_unary) => {
                operator.and_then(|operator| operator.unary().ok()).expect("the guard says so")(*value)
            }
            _ if operator.is_some() || name == "pow" => {
                let message = format!("`{name}` does not take {} argument(s)", arguments.len());
                return Err(self.wrong_at(message, start));
            }
            _ => return Err(self.unknown(name, start)),
        };
        finite(value, step)
    }

    fn arguments(&mut self) -> Result<Vec<f64>, Wrong> {
        self.next();
        let mut arguments = vec![self.deeper(Self::sum)?];
        while self.peek() == Some(',') {
            self.next();
            arguments.push(self.deeper(Self::sum)?);
        }
        self.close()?;
        Ok(arguments)
    }

    fn binary(
        &mut self,
        operator: &'static str,
        left: f64,
        right: impl FnOnce(&mut Self) -> Result<f64, Wrong>,
    ) -> Result<f64, Wrong> {
        self.next();
        let right = right(self)?;
        let apply = OPERATORS[operator].bin().expect("exmex has + - * / ^ with two sides").apply;
        finite(apply(left, right), || format!("{left} {operator} {right}"))
    }

    fn deeper(&mut self, read: impl FnOnce(&mut Self) -> Result<f64, Wrong>) -> Result<f64, Wrong> {
        if self.depth == MAX_DEPTH {
            return Err(self.wrong(format!("more than {MAX_DEPTH} levels are nested")));
        }
        self.depth += 1;
        let value = read(self);
        self.depth -= 1;
        value
    }

    /// The next character that is no white space.
    fn peek(&mut self) -> Option<char> {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
        self.text[self.at..].chars().next()
    }

    fn next(&mut self) {
        self.at += self.peek().map_or(0, char::len_utf8);
    }

    fn close(&mut self) -> Result<(), Wrong> {
        match self.peek() {
            Some(')') => {
                self.next();
                Ok(())
            }
            Some(other) => Err(self.wrong(format!("an operator or `)` is expected instead of `{other}`"))),
            None => Err(self.wrong("a `)` is missing")),
        }
    }

    fn unknown(&self, name: &str, start: usize) -> Wrong {
        let own = ["pow", "pi", "tau"];
        let known = OPERATORS.keys().copied().filter(|known| known.starts_with(char::is_alphabetic)).chain(own);
        let hint = nearest(name, known).map(|near| format!(" (did you mean `{near}`?)")).unwrap_or_default();
        self.wrong_at(format!("`{name}` is unknown{hint}"), start)
    }

    fn wrong(&self, message: impl Into<String>) -> Wrong {
        self.wrong_at(message, self.at)
    }

    fn wrong_at(&self, message: impl Into<String>, at: usize) -> Wrong {
        Wrong::Unreadable { message: message.into(), at: self.text[..at].chars().count() + 1 }
    }
}

/// Rounds half away from zero at so many decimal places; negative places round before the point.
fn round(value: f64, digits: f64) -> f64 {
    let scale = 10f64.powf(digits.trunc());
    let scaled = value * scale;
    // Too large to have such places at all, or places beyond what a float can tell.
    if !scaled.is_finite() || scale == 0.0 { value } else { scaled.round() / scale }
}

/// A step that leaves the numbers is an error where it happens: `max` would swallow it otherwise.
fn finite(value: f64, step: impl FnOnce() -> String) -> Result<f64, Wrong> {
    let reason = if value.is_finite() {
        return Ok(value);
    } else if value.is_nan() {
        "is not a number"
    } else {
        "is infinite or too large"
    };
    Err(Wrong::NotFinite { step: step(), reason })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value(text: &str) -> f64 {
        evaluate(text, |name| (name == "x").then_some(3.0)).unwrap_or_else(|wrong| panic!("{text}: {wrong}"))
    }

    fn wrong(text: &str) -> String {
        evaluate(text, |_| None).expect_err(text).to_string()
    }

    #[test]
    fn operators_bind_as_they_do_in_mathematics() {
        for (text, expected) in [
            ("1 + 2 * 3", 7.0),
            ("(1 + 2) * 3", 9.0),
            ("10 - 2 - 3", 5.0),
            ("100 / 10 / 5", 2.0),
            ("49 * 3 / 49", 3.0),
            ("8 / 4 % 3", 2.0),
            ("-7 % 3", -1.0),
            ("2 ^ 3 ^ 2", 512.0),
            ("2 ** 3 ** 2", 512.0),
            ("-2 ^ 2", -4.0),
            ("(-2) ^ 2", 4.0),
            ("2 ^ -1", 0.5),
            ("2 * -3", -6.0),
            ("2 - -3", 5.0),
            ("--2", 2.0),
            ("6 ÷ 3 × 2 − 1", 3.0),
        ] {
            assert_eq!(value(text), expected, "{text}");
        }
    }

    #[test]
    fn numbers_names_and_functions_are_read() {
        for (text, expected) in [
            ("1e5", 1e5),
            ("1.5E-3", 1.5e-3),
            (".5 + 1.", 1.5),
            ("x * x", 9.0),
            ("max(1, max(2, x), 1)", 3.0),
            ("min(1, 2) * max(3, 4)", 4.0),
            ("sqrt(16) + abs(-1)", 5.0),
            ("round(2.5)", 3.0),
            ("round(1.23456, 2)", 1.23),
            ("round(1234, -2)", 1200.0),
            ("round(1.5, 400)", 1.5),
            ("pow(2, 10)", 1024.0),
            ("log10(1000)", 3.0),
            ("floor(-1.5)", -2.0),
            ("cos(pi) + sin(0)", -1.0),
            ("ln(e)", 1.0),
            ("atan2(0, 1)", 0.0),
        ] {
            assert_eq!(value(text), expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_says_why_and_where() {
        for (text, expected) in [
            ("", "a number is missing at character 1"),
            ("1 +", "a number is missing at character 4"),
            ("(1", "a `)` is missing at character 3"),
            ("1)", "an operator is expected instead of `)` at character 2"),
            ("1 2", "an operator is expected instead of `2` at character 3"),
            ("2(3)", "an operator is expected instead of `(` at character 2"),
            ("1,000", "an operator is expected instead of `,` at character 2"),
            ("π + ?", "a number is expected instead of `?` at character 5"),
            ("1 + sqr(4)", "`sqr` is unknown (did you mean `sqrt`?) at character 5"),
            ("y", "`y` is unknown at character 1"),
            ("sqrt(1, 2)", "`sqrt` does not take 2 argument(s) at character 1"),
            ("max(1)", "`max` does not take 1 argument(s) at character 1"),
            ("pi(1)", "`pi` does not take 1 argument(s) at character 1"),
            ("log(100)", "`log` is ambiguous: write ln, log2 or log10 at character 1"),
            ("2e", "an operator is expected instead of `e` at character 2"),
            (".", "`.` is not a number at character 1"),
            ("max(1,)", "a number is expected instead of `)` at character 7"),
        ] {
            assert_eq!(wrong(text), expected, "{text}");
        }
    }

    #[test]
    fn a_step_without_a_finite_result_is_named() {
        for (text, expected) in [
            ("1 / 0", "1 / 0 is infinite or too large"),
            ("0 / 0", "0 / 0 is not a number"),
            ("1 % 0", "1 % 0 is not a number"),
            ("max(sqrt(-1), 1)", "sqrt(-1) is not a number"),
            ("1 / exp(1000)", "exp(1000) is infinite or too large"),
            ("10 ^ 400", "10 ^ 400 is infinite or too large"),
            ("1e999", "the number 1e999 is infinite or too large"),
        ] {
            assert_eq!(wrong(text), expected, "{text}");
        }
    }

    #[test]
    fn nesting_has_an_end() {
        for text in ["(".repeat(5000), "-".repeat(5000), "1^".repeat(5000), "sqrt(".repeat(5000)] {
            assert!(wrong(&text).contains("levels are nested"));
        }
        assert_eq!(value(&format!("{}1{}", "(".repeat(64), ")".repeat(64))), 1.0);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[-+*/%^(),. 0-9a-eπ×−xE_]{0,40}|.{0,40}") {
            let _ = evaluate(&text, |name| (name == "x").then_some(0.5));
        }

        #[test]
        fn what_it_reads_it_computes_like_rust(a in -1e6..1e6f64, b in 1.0..1e6f64, c in -1e6..1e6f64) {
            prop_assert_eq!(value(&format!("{a} - {b} * {c} / {b} + {a} % {b}")), a - b * c / b + a % b);
        }
    }
}
