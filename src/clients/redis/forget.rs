//! Removing everything under a prefix that a demo or a test had for itself.

use crate::clients::redis::error::RedisError;
use crate::clients::redis::link::Link;
use crate::clients::redis::reply;

/// Keys of one look.
const PAGE: usize = 500;

/// Deletes every key that begins with `prefix`. An empty prefix is refused: it would be everybody's.
pub async fn forget(link: &Link, prefix: &str) -> Result<(), RedisError> {
    if prefix.is_empty() {
        return Ok(());
    }
    let what = "a look through the keys";
    let mut cursor = String::from("0");
    loop {
        let mut look = redis::cmd("SCAN");
        look.arg(&cursor).arg("MATCH").arg(pattern(prefix)).arg("COUNT").arg(PAGE);
        let [next, keys] = reply::tuple::<2>(link.query(&look).await?, what)?;
        let keys = reply::list(keys, what)?;
        if !keys.is_empty() {
            let mut unlink = redis::cmd("UNLINK");
            keys.iter().filter_map(reply::as_bytes).for_each(|key| {
                unlink.arg(key);
            });
            link.query(&unlink).await?;
        }
        cursor = reply::text(next).ok_or(RedisError::Unexpected { what })?;
        if cursor == "0" {
            return Ok(());
        }
    }
}

/// The prefix as a pattern that matches nothing else.
pub(super) fn pattern(prefix: &str) -> String {
    let mut pattern = String::with_capacity(prefix.len() + 1);
    for character in prefix.chars() {
        if matches!(character, '*' | '?' | '[' | ']' | '\\' | '^' | '-') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern.push('*');
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_no_pattern() {
        assert_eq!(pattern("a*b?[c]:"), "a\\*b\\?\\[c\\]:*");
    }
}
