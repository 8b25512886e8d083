//! `status`: what waits, what is held, which workers there are. Numbers come from Redis at this moment.

use std::time::Duration;

use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use console::style;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cli::{Settings, block_on, print_line, redis_failed};
use crate::clients::redis::{Keys, Link, RedisError, StreamOverview, WaitingRoom, now_millis, overview, registered};
use crate::config::Config;

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What there is to see.
struct Seen {
    now: u64,
    streams: Vec<StreamOverview>,
    /// Questions that nodes wait with.
    questions: u64,
    /// Workers as they announce themselves, by their ids.
    workers: Vec<Value>,
    /// Consumers that hold work and belong to none of them.
    strays: Vec<Stray>,
}

/// A process that holds work and announces itself no more.
struct Stray {
    stream: String,
    consumer: String,
    pending: u64,
    idle: Duration,
}

/// Prints it.
pub fn run(settings: &Settings, args: &StatusArgs) -> u8 {
    let config = match settings.config() {
        Ok(config) => config,
        Err(code) => return code,
    };
    let seen = match block_on(look(&config)) {
        Ok(seen) => seen,
        Err(error) => return redis_failed(error, &config),
    };
    let text = if args.json { format!("{:#}", seen.json()) } else { seen.text(&config.work.group) };
    print_line(text.trim_end());
    0
}

async fn look(config: &Config) -> Result<Seen, RedisError> {
    let (link, keys) = (Link::new(&config.redis)?, Keys::new(&config.state.prefix));
    let now = now_millis(&link).await?;
    let mut streams = Vec::with_capacity(config.work.streams.len());
    for stream in &config.work.streams {
        streams.push(overview(&link, &keys, stream, &config.work.group, now).await?);
    }
    let announced = registered(&link, &keys).await?;
    let mut workers: Vec<Value> = announced.iter().filter_map(|worker| serde_json::from_str(worker).ok()).collect();
    workers.sort_by_key(|worker| worker["id"].as_str().unwrap_or_default().to_owned());
    let strays = strays(&streams, &workers);
    let questions = WaitingRoom::new(link, keys, config).count().await?;
    Ok(Seen { now, streams, questions, workers, strays })
}

fn strays(streams: &[StreamOverview], workers: &[Value]) -> Vec<Stray> {
    let announced = |consumer: &str| {
        workers.iter().any(|worker| {
            let name = |part: &Value| part.as_str().map(str::to_owned).unwrap_or_default();
            consumer == format!("{}:{}", name(&worker["id"]), name(&worker["metadata"]["instance"]))
        })
    };
    let holders = streams.iter().flat_map(|stream| stream.holders.iter().map(move |holder| (stream, holder)));
    holders
        .filter(|(_, holder)| !announced(&holder.consumer))
        .map(|(stream, holder)| Stray {
            stream: stream.stream.clone(),
            consumer: holder.consumer.clone(),
            pending: holder.pending,
            idle: holder.idle,
        })
        .collect()
}

impl Seen {
    fn json(&self) -> Value {
        let seconds = |age: Option<Duration>| age.map(|age| age.as_secs_f64());
        let streams = self.streams.iter().map(|stream| {
            let holders = stream.holders.iter().map(|holder| {
                json!({
                    "consumer": holder.consumer,
                    "pending": holder.pending,
                    "idle_seconds": holder.idle.as_secs_f64(),
                })
            });
            json!({
                "stream": stream.stream,
                "group": stream.group,
                "length": stream.length,
                "lag": stream.lag,
                "pending": stream.pending,
                "handed_back": stream.handed_back,
                "oldest_waiting_seconds": seconds(stream.oldest_waiting),
                "oldest_pending_seconds": seconds(stream.oldest_pending),
                "parked": stream.parked,
                "dead_letters": stream.dead,
                "holders": holders.collect::<Vec<_>>(),
            })
        });
        let strays = self.strays.iter().map(|stray| {
            json!({
                "stream": stray.stream,
                "consumer": stray.consumer,
                "pending": stray.pending,
                "idle_seconds": stray.idle.as_secs_f64(),
            })
        });
        json!({
            "at": self.at().to_string(),
            "streams": streams.collect::<Vec<_>>(),
            "open_questions": self.questions,
            "workers": self.workers,
            "strays": strays.collect::<Vec<_>>(),
        })
    }

    fn text(&self, group: &str) -> String {
        let mut streams = table(&["STREAM", "WAITING", "OLDEST", "PENDING", "OLDEST", "PARKED", "DEAD LETTERS"]);
        for stream in &self.streams {
            streams.add_row([
                stream.stream.clone(),
                stream.lag.to_string(),
                stream.oldest_waiting.map(short).unwrap_or_default(),
                match stream.handed_back {
                    0 => stream.pending.to_string(),
                    back => format!("{} ({back} handed back)", stream.pending),
                },
                stream.oldest_pending.map(short).unwrap_or_default(),
                stream.parked.to_string(),
                stream.dead.to_string(),
            ]);
        }
        let mut text = format!("{streams}\n");
        if self.questions > 0 {
            let what = if self.questions == 1 { "question is" } else { "questions are" };
            text.push_str(&format!("\n{} {what} open: executor-worker waits list\n", self.questions));
        }
        for stream in self.streams.iter().filter(|stream| !stream.group) {
            let remark = format!("{} has no consumer group {group} yet: no worker has started on it", stream.stream);
            text.push_str(&format!("{}\n", style(remark).yellow()));
        }
        let held = self.streams.iter().flat_map(|stream| stream.holders.iter().map(move |holder| (stream, holder)));
        let mut holders = table(&["PENDING AT", "OF", "ITEMS", "LAST ACTED"]);
        for (stream, holder) in held {
            let (consumer, items) = (holder.consumer.clone(), holder.pending.to_string());
            holders.add_row([consumer, stream.stream.clone(), items, format!("{} ago", short(holder.idle))]);
        }
        if !holders.is_empty() {
            text.push_str(&format!("\n{holders}\n"));
        }
        text.push('\n');
        if self.workers.is_empty() {
            text.push_str(&format!("{}\n", style("no worker is running").yellow()));
        } else {
            let mut workers = table(&["WORKER", "STATUS", "BUSY", "CURRENT", "SEEN", "SINCE", "VERSION", "ADDRESS"]);
            for worker in &self.workers {
                let facts = &worker["metadata"];
                let plain = |value: &Value| value.as_str().map_or_else(String::new, String::from);
                workers.add_row([
                    plain(&worker["id"]),
                    plain(&worker["status"]),
                    format!("{} of {}", facts["in_flight"], facts["pool_size"]),
                    plain(&worker["current_task"]),
                    self.ago(&worker["last_heartbeat"]),
                    self.ago(&worker["registered_at"]),
                    plain(&worker["version"]),
                    plain(&facts["address"]),
                ]);
            }
            text.push_str(&format!("{workers}\n"));
        }
        for stray in &self.strays {
            let remark = format!(
                "{} holds {} of {} and announces itself no more, silent for {}; its work is taken over when its lease ends",
                stray.consumer,
                stray.pending,
                stray.stream,
                short(stray.idle)
            );
            text.push_str(&format!("{}\n", style(remark).yellow()));
        }
        text
    }

    fn at(&self) -> Timestamp {
        Timestamp::from_millisecond(i64::try_from(self.now).unwrap_or_default()).unwrap_or_default()
    }

    /// How long ago a moment was that a worker tells by its own clock.
    fn ago(&self, moment: &Value) -> String {
        let moment = moment.as_str().and_then(|text| text.parse::<Timestamp>().ok());
        let age = moment.map(|moment| self.at().duration_since(moment)).and_then(|age| Duration::try_from(age).ok());
        age.map(|age| format!("{} ago", short(age))).unwrap_or_default()
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header.iter().copied());
    table
}

/// An age in its two largest units.
fn short(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0 => format!("{}ms", age.as_millis()),
        1..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h {}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::redis::Holder;

    #[test]
    fn an_age_has_at_most_two_units() {
        let ages = [0, 59, 61, 3_600, 90_061].map(|seconds| short(Duration::from_secs(seconds)));
        assert_eq!(ages, ["0ms", "59s", "1m 1s", "1h 0m", "1d 1h"]);
    }

    #[test]
    fn who_holds_work_and_is_not_announced_is_a_stray() {
        let holder = |consumer: &str| Holder { consumer: String::from(consumer), pending: 1, idle: Duration::ZERO };
        let holders = vec![holder("w:1"), holder("w:0"), holder("v:1")];
        let streams = [StreamOverview { holders, ..StreamOverview::default() }];
        let workers = [json!({"id": "w", "metadata": {"instance": "1"}})];
        let found: Vec<_> = strays(&streams, &workers).into_iter().map(|stray| stray.consumer).collect();
        assert_eq!(found, ["w:0", "v:1"], "an earlier process of the same name is another one");
    }
}
