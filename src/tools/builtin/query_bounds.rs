//! Bounds of JMESPath expressions. The library recurses without limit and an expression such as `[@, @][] | [@, @][]`
//! doubles the data at every step, so both are judged before anything is evaluated.

use std::sync::LazyLock;

use jmespath::ast::Ast;
use jmespath::functions::{ArgumentType, CustomFunction, Signature};
use jmespath::{Context, ErrorReason, JmespathError, Rcvar, Runtime, SearchResult, Variable};
use serde_json::Number;

use crate::domain::outcome::Failure;

/// Bytes of an expression.
const MAX_BYTES: usize = 10_000;
/// Steps within one another, brackets and chains alike: each costs stack frames of the parser and the evaluation.
pub(super) const MAX_DEPTH: usize = 100;
/// How often an expression may multiply its data, whatever the size of the data.
const FREE_GROWTH: u64 = 16;
/// Values that may come of it otherwise.
const MAX_VALUES: u64 = 10_000_000;
/// Bytes of a joined text.
const MAX_JOINED: usize = 16 * 1024 * 1024;

/// The functions of JMESPath; those that compute keep integers as they are.
pub(super) static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let mut runtime = Runtime::new();
    runtime.register_builtin_functions();
    let mut replace = |name: &str, inputs: Vec<ArgumentType>, function: Function| {
        runtime
            .register_function(name, Box::new(CustomFunction::new(Signature::new(inputs, None), Box::new(function))));
    };
    replace("sum", vec![list_of(ArgumentType::Number)], sum);
    replace("abs", vec![ArgumentType::Number], |arguments, context| {
        compute(&arguments[0], context, i64::checked_abs, f64::abs)
    });
    replace("ceil", vec![ArgumentType::Number], |arguments, context| compute(&arguments[0], context, Some, f64::ceil));
    replace("floor", vec![ArgumentType::Number], |arguments, context| {
        compute(&arguments[0], context, Some, f64::floor)
    });
    replace("join", vec![ArgumentType::String, list_of(ArgumentType::String)], join);
    runtime
});

type Function = fn(&[Rcvar], &mut Context<'_>) -> SearchResult;

/// Refuses an expression that is too long or too deep to be parsed.
pub(super) fn check_text(expression: &str) -> Result<(), Failure> {
    if expression.len() > MAX_BYTES {
        return Err(Failure::validation(
            "expression_too_long",
            format!("`expression` has {} bytes, more than {MAX_BYTES}", expression.len()),
        ));
    }
    // One counter a bracket: the steps of its current element. A comma begins another element, no deeper one.
    let mut outer = Vec::new();
    let (mut level, mut depth) = (0, 0);
    let mut characters = expression.chars();
    let mut before = ' ';
    while let Some(character) = characters.next() {
        let pair = std::mem::replace(&mut before, character);
        match (pair, character) {
            // The second half of `||`, `&&`, `==` and the like.
            ('|', '|') | ('&', '&') | ('=' | '<' | '>' | '!', '=') => before = ' ',
            (_, '\'' | '"' | '`') => {
                while let Some(quoted) = characters.next() {
                    match quoted {
                        '\\' => drop(characters.next()),
                        _ if quoted == character => break,
                        _ => {}
                    }
                }
            }
            (_, ',') => {
                depth -= level;
                level = 0;
            }
            (_, ')' | ']' | '}') => {
                if let Some(resumed) = outer.pop() {
                    depth -= level;
                    level = resumed;
                }
            }
            (_, '.' | '|' | '&' | '!' | '<' | '>' | '=' | '(' | '[' | '{') => {
                level += 1;
                depth += 1;
                if matches!(character, '(' | '[' | '{') {
                    outer.push(level);
                    level = 0;
                }
            }
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err(too_complex(format!("it nests or chains more than {MAX_DEPTH} steps")));
        }
    }
    Ok(())
}

/// Refuses an expression that could make too much of so many values.
pub(super) fn check_growth(ast: &Ast, values: usize) -> Result<(), Failure> {
    let growth = growth(ast);
    let values = u64::try_from(values).unwrap_or(u64::MAX);
    if growth > FREE_GROWTH && growth.saturating_mul(values) > MAX_VALUES {
        return Err(too_complex(format!("it can multiply the data {growth} times, to more than {MAX_VALUES} values")));
    }
    Ok(())
}

fn too_complex(reason: String) -> Failure {
    Failure::validation("expression_too_complex", format!("the JMESPath expression is too complex: {reason}"))
}

/// How many times the data, at most, a step holds at once: chains multiply, lists add.
fn growth(ast: &Ast) -> u64 {
    let sum = |parts: &mut dyn Iterator<Item = &Ast>| parts.map(growth).fold(0, u64::saturating_add).max(1);
    match ast {
        Ast::Identity { .. } | Ast::Field { .. } | Ast::Index { .. } | Ast::Slice { .. } | Ast::Literal { .. } => 1,
        Ast::Expref { ast: node, .. }
        | Ast::Not { node, .. }
        | Ast::Flatten { node, .. }
        | Ast::ObjectValues { node, .. } => growth(node),
        Ast::Subexpr { lhs, rhs, .. } | Ast::Projection { lhs, rhs, .. } => growth(lhs).saturating_mul(growth(rhs)),
        Ast::Comparison { lhs, rhs, .. } | Ast::And { lhs, rhs, .. } | Ast::Or { lhs, rhs, .. } => {
            growth(lhs).max(growth(rhs))
        }
        Ast::Condition { predicate, then, .. } => growth(predicate).max(growth(then)),
        Ast::MultiList { elements, .. } => sum(&mut elements.iter()),
        Ast::MultiHash { elements, .. } => sum(&mut elements.iter().map(|pair| &pair.value)),
        // `map`, `sort_by` and their kin evaluate one argument for each value of the other.
        Ast::Function { args, .. } if args.iter().any(|arg| matches!(arg, Ast::Expref { .. })) => {
            args.iter().map(growth).fold(1, u64::saturating_mul)
        }
        // Each quote and each backslash of a text takes two characters.
        Ast::Function { name, args, .. } if name == "to_string" => sum(&mut args.iter()).saturating_mul(2),
        Ast::Function { args, .. } => sum(&mut args.iter()),
    }
}

fn list_of(kind: ArgumentType) -> ArgumentType {
    ArgumentType::TypedArray(Box::new(kind))
}

fn error(context: &Context<'_>, reason: impl Into<String>) -> JmespathError {
    JmespathError::new(context.expression, context.offset, ErrorReason::Parse(reason.into()))
}

fn number(value: f64, context: &Context<'_>) -> Result<Number, JmespathError> {
    Number::from_f64(value).ok_or_else(|| error(context, "the result is not a finite number"))
}

fn sum(arguments: &[Rcvar], context: &mut Context<'_>) -> SearchResult {
    let numbers = || arguments[0].as_array().into_iter().flatten();
    let integer = |value: &Rcvar| match &**value {
        Variable::Number(number) => number.as_i64(),
        _ => None,
    };
    let exact = numbers().try_fold(0i64, |total, value| total.checked_add(integer(value)?));
    let total = match exact {
        Some(total) => Number::from(total),
        None => number(numbers().filter_map(|value| value.as_number()).sum(), context)?,
    };
    Ok(Rcvar::new(Variable::Number(total)))
}

/// Applies a function to an integer as an integer, and writes what is integral as one.
fn compute(
    argument: &Rcvar,
    context: &mut Context<'_>,
    exact: fn(i64) -> Option<i64>,
    function: fn(f64) -> f64,
) -> SearchResult {
    let Variable::Number(value) = &**argument else { return Ok(Rcvar::new(Variable::Null)) };
    if let Some(result) = value.as_i64().and_then(exact) {
        return Ok(Rcvar::new(Variable::Number(Number::from(result))));
    }
    if value.is_u64() {
        // Larger than any i64, not negative and integral: none of the functions changes it.
        return Ok(Rcvar::clone(argument));
    }
    let result = function(value.as_f64().unwrap_or_default());
    // Beyond 2^53 a float no longer tells neighbouring integers apart.
    let result = if result.fract() == 0.0 && result.abs() < 9_007_199_254_740_992.0 {
        #[expect(clippy::cast_possible_truncation, reason = "it is an integer below 2^53")]
        Number::from(result as i64)
    } else {
        number(result, context)?
    };
    Ok(Rcvar::new(Variable::Number(result)))
}

/// The one function whose result can be as large as the product of its arguments.
fn join(arguments: &[Rcvar], context: &mut Context<'_>) -> SearchResult {
    let glue = arguments[0].as_string().map(String::as_str).unwrap_or_default();
    let texts: Vec<&str> =
        arguments[1].as_array().into_iter().flatten().filter_map(|text| text.as_string().map(String::as_str)).collect();
    let bytes = texts.iter().map(|text| text.len()).sum::<usize>() + glue.len() * texts.len().saturating_sub(1);
    if bytes > MAX_JOINED {
        return Err(error(context, format!("`join` would make a text of {bytes} bytes, more than {MAX_JOINED}")));
    }
    Ok(Rcvar::new(Variable::String(texts.join(glue))))
}
