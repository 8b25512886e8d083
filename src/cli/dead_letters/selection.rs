//! Which dead letters are meant, and the walk through them in bounded memory.

use std::time::Duration;

use clap::Args;

use crate::cli::{FAILED, print_note};
use crate::clients::redis::{DeadLetter, DeadLetters, Link, Pages, RedisError, Span, now_millis};
use crate::config::Config;

/// Ids and filters; a letter has to satisfy each kind that is given.
#[derive(Debug, Clone, Default, Args)]
pub struct Selection {
    /// Letters by their ids, or by the id of their work as logs and events name it (stream/entry).
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// Of this cause, such as `poison` or `not_json`. Can be given several times.
    #[arg(long, value_name = "REASON")]
    reason: Vec<String>,
    /// Of this graph. Can be given several times.
    #[arg(long, value_name = "GRAPH")]
    graph: Vec<String>,
    /// Written longer ago than this, such as `7d`.
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// Written since this long ago, such as `1h`.
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    newer_than: Option<Duration>,
    /// Of this work stream; by default of all in `work.streams`. Can be given several times.
    #[arg(long, value_name = "STREAM")]
    stream: Vec<String>,
}

impl Selection {
    /// Whether nothing but the streams limits it.
    pub fn is_everything(&self) -> bool {
        self.ids.is_empty()
            && self.reason.is_empty()
            && self.graph.is_empty()
            && self.older_than.is_none()
            && self.newer_than.is_none()
    }

    /// Ids that can be none are slips.
    pub fn check(&self) -> Result<(), String> {
        match self.ids.iter().find(|id| !is_entry(id) && !id.contains('/')) {
            Some(id) => {
                Err(format!("{id:?} is no id; one looks like 1700000000000-0 or executor.work/1700000000000-0"))
            }
            None => Ok(()),
        }
    }

    fn accepts(&self, letter: &DeadLetter) -> bool {
        let graph = letter.graph_id.as_deref();
        (self.ids.is_empty() || self.ids.iter().any(|id| *id == letter.id || *id == letter.work_id))
            && (self.reason.is_empty() || self.reason.contains(&letter.reason))
            && (self.graph.is_empty() || self.graph.iter().any(|wanted| Some(wanted.as_str()) == graph))
    }

    /// The parts of a stream that can hold what is meant.
    fn spans(&self, now: u64) -> Vec<Span> {
        if !self.ids.is_empty() && self.ids.iter().all(|id| is_entry(id)) {
            return self.ids.iter().map(|id| Span { from: id.clone(), to: id.clone() }).collect();
        }
        let ago = |age: Duration| now.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        let mut span = Span::all();
        if let Some(age) = self.newer_than {
            span.from = ago(age).to_string();
        }
        if let Some(age) = self.older_than {
            span.to = ago(age).to_string();
        }
        vec![span]
    }

    /// Whether a span by ids is within the ages asked for.
    fn fits_age(&self, letter: &DeadLetter, now: u64) -> bool {
        let age = Duration::from_millis(now.saturating_sub(letter.millis()));
        self.older_than.is_none_or(|least| age >= least) && self.newer_than.is_none_or(|most| age <= most)
    }
}

fn is_entry(id: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    id.split_once('-').is_some_and(|(millis, number)| digits(millis) && digits(number))
}

/// A walk through the letters that are meant. Those written after it began are not among them.
#[derive(Debug, Clone)]
pub struct Walk {
    selection: Selection,
    now: u64,
    pages: Vec<Pages>,
    at: usize,
    /// Ids that were not met yet.
    missing: Vec<String>,
    /// All letters of the streams, meant or not.
    pub total: u64,
}

impl Walk {
    /// Begins before the first letter.
    pub async fn begin(
        link: &Link,
        letters: &DeadLetters,
        config: &Config,
        selection: &Selection,
    ) -> Result<Self, RedisError> {
        let streams = if selection.stream.is_empty() { &config.work.streams } else { &selection.stream };
        let now = now_millis(link).await?;
        let (mut pages, mut total) = (Vec::new(), 0);
        for stream in streams {
            total += letters.count(stream).await?;
            for span in selection.spans(now) {
                pages.push(letters.read(stream, span).await?);
            }
        }
        Ok(Self { selection: selection.clone(), now, pages, at: 0, missing: selection.ids.clone(), total })
    }

    /// Further letters, all of one stream and perhaps none; nothing at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<DeadLetter>>, RedisError> {
        while let Some(pages) = self.pages.get_mut(self.at) {
            let mut page = pages.next().await?;
            if page.is_empty() {
                self.at += 1;
                continue;
            }
            page.retain(|letter| self.selection.accepts(letter) && self.selection.fits_age(letter, self.now));
            self.missing.retain(|id| !page.iter().any(|letter| *id == letter.id || *id == letter.work_id));
            return Ok(Some(page));
        }
        Ok(None)
    }

    /// Names the ids that were asked for and not met; gives the exit code for that.
    pub fn tell_missing(&self) -> u8 {
        for id in &self.missing {
            print_note(format_args!("no dead letter {id} is among those meant"));
        }
        if self.missing.is_empty() { 0 } else { FAILED }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter() -> DeadLetter {
        DeadLetter {
            id: String::from("5000-1"),
            work_id: String::from("s/1-0"),
            reason: String::from("poison"),
            graph_id: Some(String::from("g")),
            ..DeadLetter::default()
        }
    }

    fn of(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| String::from(*text)).collect()
    }

    #[test]
    fn a_letter_has_to_satisfy_each_kind_of_filter_and_one_of_its_values() {
        let accepts = |reason: &[&str], graph: &[&str], ids: &[&str]| {
            let selection = Selection { reason: of(reason), graph: of(graph), ids: of(ids), ..Selection::default() };
            selection.accepts(&letter())
        };
        assert!(accepts(&[], &[], &[]));
        assert!(accepts(&["not_json", "poison"], &["g"], &["5000-1"]));
        assert!(accepts(&[], &[], &["s/1-0"]), "by the name of the work too");
        assert!(!accepts(&["not_json"], &["g"], &[]));
        assert!(!accepts(&["poison"], &["h"], &[]));
        assert!(!accepts(&[], &[], &["5000-2"]));
        let nameless = DeadLetter { graph_id: None, ..letter() };
        assert!(!Selection { graph: of(&["g"]), ..Selection::default() }.accepts(&nameless));
    }

    #[test]
    fn ages_limit_what_is_read_at_all() {
        let selection = Selection {
            older_than: Some(Duration::from_secs(1)),
            newer_than: Some(Duration::from_secs(3)),
            ..Selection::default()
        };
        assert_eq!(selection.spans(10_000), [Span { from: String::from("7000"), to: String::from("9000") }]);
        assert!(!selection.fits_age(&letter(), 5_500) && selection.fits_age(&letter(), 6_000));
        assert!(selection.fits_age(&letter(), 8_000) && !selection.fits_age(&letter(), 8_001));
        let by_id = Selection { ids: of(&["5000-1"]), ..Selection::default() };
        assert_eq!(by_id.spans(0), [Span { from: String::from("5000-1"), to: String::from("5000-1") }]);
        let by_work = Selection { ids: of(&["5000-1", "s/1-0"]), ..Selection::default() };
        assert_eq!(by_work.spans(0), [Span::all()]);
    }

    #[test]
    fn what_can_be_no_id_is_a_slip() {
        let check = |id: &str| Selection { ids: of(&[id]), ..Selection::default() }.check().is_ok();
        assert!(check("5000-1") && check("executor.work/5000-1"));
        assert!(!check("5000") && !check("poison") && !check("-1") && !check("5000-"));
    }
}
