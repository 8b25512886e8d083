//! `dead-letters`: shows the work that no worker tries again, puts it back, or deletes it. The letters themselves are
//! the Redis client's.

mod print;
mod selection;

use std::io::{IsTerminal as _, Write as _};

use clap::{Args, Subcommand};
use serde_json::json;

use crate::cli::{FAILED, Settings, WRONG_ARGUMENTS, block_on, complain, fail, print_line, print_note, redis_failed};
use crate::clients::redis::{DeadLetter, DeadLetters, Keys, Link, RedisError, Redriven};
use crate::config::Config;

use print::{Format, Printer, grouped};
use selection::{Selection, Walk};

/// Letters that `list` shows in a table unless it is told otherwise.
const SHOWN: usize = 100;

/// What can be done with dead letters.
#[derive(Debug, Subcommand)]
pub enum DeadLettersCommand {
    /// List them, the oldest first.
    List {
        /// Which of them.
        #[command(flatten)]
        selection: Selection,
        /// How many to list, 0 for all. Default: 100 in a table, all elsewhere; the totals are always told.
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
        /// In which form.
        #[command(flatten)]
        format: Format,
    },
    /// Show everything that is known of some of them, their data included.
    Show {
        /// Which of them.
        #[command(flatten)]
        chosen: Chosen,
        /// In which form.
        #[command(flatten)]
        format: Format,
    },
    /// Put their work into its stream again, each once, however many people do so.
    Retry {
        /// Which of them.
        #[command(flatten)]
        chosen: Chosen,
        /// Retry at most so many.
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
        /// Only tell what would be done.
        #[arg(long)]
        dry_run: bool,
        /// In which form.
        #[command(flatten)]
        format: Format,
    },
    /// Delete them for good.
    Purge {
        /// Which of them.
        #[command(flatten)]
        chosen: Chosen,
        /// Delete at most so many.
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
        /// Only tell how many would be deleted.
        #[arg(long)]
        dry_run: bool,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

/// A selection that has to be made: nothing is done to all of them by a slip.
#[derive(Debug, Args)]
pub struct Chosen {
    #[command(flatten)]
    selection: Selection,
    /// All of them, where neither ids nor filters are given.
    #[arg(long)]
    all: bool,
}

/// Runs the subcommand; the answer is the exit code.
pub fn run(settings: &Settings, command: &DeadLettersCommand) -> u8 {
    if let Err(remark) = command.check() {
        complain(remark);
        return WRONG_ARGUMENTS;
    }
    let config = match settings.config() {
        Ok(config) => config,
        Err(code) => return code,
    };
    match block_on(command.work(&config)) {
        Ok(code) => code,
        Err(error) if print::is_broken_pipe(&error) => 0,
        Err(error) => match error.downcast::<RedisError>() {
            Ok(error) => redis_failed(error, &config),
            Err(error) => fail(error),
        },
    }
}

impl DeadLettersCommand {
    /// What the parser of arguments cannot see.
    fn check(&self) -> Result<(), String> {
        let (selection, all) = match self {
            Self::List { selection, .. } => (selection, true),
            Self::Show { chosen, .. } | Self::Retry { chosen, .. } | Self::Purge { chosen, .. } => {
                (&chosen.selection, chosen.all)
            }
        };
        selection.check()?;
        if !all && selection.is_everything() {
            return Err(String::from("say which: give ids or filters, or --all for all of them"));
        }
        if let Self::Purge { dry_run: false, yes: false, .. } = self
            && !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal())
        {
            return Err(String::from("purge asks before it deletes, and nobody can be asked here; give --yes"));
        }
        Ok(())
    }

    async fn work(&self, config: &Config) -> anyhow::Result<u8> {
        let link = Link::new(&config.redis)?;
        let letters = DeadLetters::new(link.clone(), Keys::new(&config.state.prefix));
        let begin = async |selection| Walk::begin(&link, &letters, config, selection).await;
        match self {
            Self::List { selection, limit, format } => {
                let default = if format.is_table() { SHOWN } else { 0 };
                let mut printer = Printer::new(*format, false);
                list(begin(selection).await?, limit.unwrap_or(default), &mut printer).await
            }
            Self::Show { chosen, format } => {
                list(begin(&chosen.selection).await?, 0, &mut Printer::new(*format, true)).await
            }
            Self::Retry { chosen, limit, dry_run, format } => {
                let printer = Printer::new(*format, false);
                retry(&letters, begin(&chosen.selection).await?, bound(*limit), *dry_run, printer).await
            }
            Self::Purge { chosen, limit, dry_run, yes } => {
                let walk = begin(&chosen.selection).await?;
                purge(&letters, walk, bound(*limit), *dry_run, *yes).await
            }
        }
    }
}

/// A limit as a number; none and zero are none.
fn bound(limit: Option<usize>) -> usize {
    limit.filter(|&limit| limit > 0).unwrap_or(usize::MAX)
}

async fn list(mut walk: Walk, limit: usize, printer: &mut Printer) -> anyhow::Result<u8> {
    let limit = bound(Some(limit));
    let (mut shown, mut matching) = (0, 0);
    while let Some(page) = walk.next().await? {
        for letter in &page {
            matching += 1;
            if shown < limit {
                shown += 1;
                printer.letter(letter)?;
            }
        }
    }
    printer.end(&json!({"shown": shown, "matching": matching, "total": walk.total}))?;
    let all = if shown < matching { "; --limit 0 shows all" } else { "" };
    print_note(format_args!(
        "{} of {} matching shown, {} in all{all}",
        grouped(shown),
        grouped(matching),
        grouped(walk.total)
    ));
    Ok(walk.tell_missing())
}

async fn retry(
    letters: &DeadLetters,
    mut walk: Walk,
    limit: usize,
    dry_run: bool,
    mut printer: Printer,
) -> anyhow::Result<u8> {
    let (mut matching, mut retried, mut refused) = (0, 0, 0);
    while let Some(page) = walk.next().await? {
        for letter in &page {
            matching += 1;
            if matching > limit {
                continue;
            }
            let redriven = match (dry_run, refused_unasked(letter)) {
                (true, None) => None,
                (true, Some(answer)) => Some(answer),
                (false, _) => Some(letters.retry(letter).await?),
            };
            match &redriven {
                None | Some(Redriven::Added(_)) => retried += 1,
                // Somebody else was faster, which is what both wanted.
                Some(Redriven::Gone) => {}
                Some(Redriven::Cut | Redriven::Empty | Redriven::Taken { .. }) => refused += 1,
            }
            printer.retried(letter, redriven.as_ref())?;
        }
    }
    printer.end(&json!({
        "retried": retried, "refused": refused, "matching": matching, "total": walk.total, "dry_run": dry_run,
    }))?;
    let verb = if dry_run { "would be retried" } else { "retried" };
    print_note(format_args!(
        "{} of {} matching {verb}, {} cannot be; there were {} in all",
        grouped(retried),
        grouped(matching),
        grouped(refused),
        grouped(walk.total)
    ));
    Ok(walk.tell_missing().max(if refused > 0 { FAILED } else { 0 }))
}

/// What the letter itself says about being retried.
fn refused_unasked(letter: &DeadLetter) -> Option<Redriven> {
    match letter {
        letter if letter.length.is_some() => Some(Redriven::Cut),
        letter if letter.data.is_empty() => Some(Redriven::Empty),
        _ => None,
    }
}

async fn purge(letters: &DeadLetters, mut walk: Walk, limit: usize, dry_run: bool, yes: bool) -> anyhow::Result<u8> {
    // The second walk ends where the first did: what is written while somebody thinks about the answer stays.
    let mut again = walk.clone();
    let mut matching = 0;
    while let Some(page) = walk.next().await? {
        matching += page.len();
    }
    let doomed = matching.min(limit);
    let of = format!("{} of {} dead letters", grouped(doomed), grouped(walk.total));
    if dry_run {
        print_line(format_args!("{of} would be deleted"));
        return Ok(walk.tell_missing());
    }
    if doomed > 0 && !yes && !confirmed(&format!("delete {of} for good?"))? {
        print_note(format_args!("nothing was deleted"));
        return Ok(FAILED);
    }
    let (mut seen, mut deleted) = (0, 0);
    while seen < doomed
        && let Some(mut page) = again.next().await?
    {
        page.truncate(doomed - seen);
        seen += page.len();
        // A page is of one stream.
        if let Some(first) = page.first() {
            deleted += letters.delete(&first.stream, page.iter().map(|letter| letter.id.as_str())).await?;
        }
    }
    print_line(format_args!("{} of {} dead letters deleted", grouped(deleted), grouped(walk.total)));
    Ok(walk.tell_missing())
}

fn confirmed(question: &str) -> std::io::Result<bool> {
    eprint!("{question} [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
