//! Logs of the process: where they go and how they look. What is logged is decided where it happens; metrics are not
//! here.

use std::fmt;
use std::io::IsTerminal as _;

use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry};

use crate::config::error::{ConfigError, Problem};
use crate::config::{LogConfig, LogFormat};

/// Sends logs to stderr from here on; stdout is for results. May be called once in a process.
pub fn init(log: &LogConfig, worker_id: &str) -> Result<(), ConfigError> {
    let terminal = std::io::stderr().is_terminal();
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let subscriber = subscriber(log, worker_id, terminal, terminal && !no_color, std::io::stderr)?;
    let problem = |_| Problem::missing("log", "logs were set up before in this process");
    subscriber.try_init().map_err(|error| ConfigError::from(problem(error)))
}

/// The subscriber of these settings, writing to `writer`.
fn subscriber<W>(
    log: &LogConfig,
    worker_id: &str,
    terminal: bool,
    colour: bool,
    writer: W,
) -> Result<impl Subscriber + Send + Sync + use<W>, ConfigError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    // What the HTTP server says of its own start and end is told by the worker itself. Later directives win.
    let filter = EnvFilter::builder().parse(format!("actix_server=warn,{}", log.level)).map_err(|_| {
        ConfigError::from(Problem::missing("log.level", "must be a level or directives such as info,target=debug"))
    })?;
    let json = match log.format {
        LogFormat::Json => true,
        LogFormat::Pretty => false,
        LogFormat::Auto => !terminal,
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines = if json {
        lines.fmt_fields(JsonFields::new()).event_format(FlatJson { worker_id: worker_id.to_owned() }).boxed()
    } else {
        lines.with_ansi(colour).with_target(false).boxed()
    };
    Ok(Registry::default().with(lines).with(filter))
}

/// One JSON object a line, with no nesting: the fields of the spans around an event, then its own. A name that both
/// use is the event's, the inner span's before the outer's.
struct FlatJson {
    worker_id: String,
}

impl<S> FormatEvent<S, JsonFields> for FlatJson
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    JsonFields: for<'a> FormatFields<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let mut line = Line(Map::new());
        line.0.insert(String::from("timestamp"), json!(format!("{:.6}", jiff::Timestamp::now())));
        line.0.insert(String::from("level"), json!(metadata.level().as_str()));
        line.0.insert(String::from("target"), json!(metadata.target()));
        // Here so that the message stands before the fields.
        line.0.insert(String::from("message"), json!(""));
        line.0.insert(String::from("worker_id"), json!(self.worker_id));
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            let extensions = span.extensions();
            let fields = extensions.get::<FormattedFields<JsonFields>>().map(|fields| fields.fields.as_str());
            if let Some(Ok(Value::Object(fields))) = fields.map(serde_json::from_str) {
                fields.into_iter().for_each(|(name, value)| line.put(&name, value));
            }
        }
        event.record(&mut line);
        writeln!(writer, "{}", Value::Object(line.0))
    }
}

/// The fields of one line.
struct Line(Map<String, Value>);

impl Line {
    fn put(&mut self, name: &str, value: Value) {
        let name = name.strip_prefix("r#").unwrap_or(name);
        // Who wrote the line, and when, is not for a field to say.
        let name = match name {
            "timestamp" | "level" | "target" | "worker_id" => format!("field.{name}"),
            name => name.to_owned(),
        };
        self.0.insert(name, value);
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field.name(), json!(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), json!(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field.name(), json!(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field.name(), json!(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field.name(), json!(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field.name(), json!(value));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field.name(), json!(value.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What was logged.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no writer panics").write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(level: &str, format: LogFormat, terminal: bool, act: impl FnOnce()) -> String {
        let written = Written::default();
        let log = LogConfig { level: level.to_owned(), format };
        let writer = written.clone();
        let subscriber = subscriber(&log, "w-1", terminal, false, move || writer.clone()).expect("good settings");
        tracing::subscriber::with_default(subscriber, act);
        let bytes = written.0.lock().expect("no writer panics").clone();
        String::from_utf8(bytes).expect("logs are UTF-8")
    }

    #[test]
    fn a_json_line_is_flat_and_bears_the_worker_and_the_spans_fields() {
        let line = logged("info", LogFormat::Json, true, || {
            let _outer = tracing::info_span!("item", work.id = "s/1-0", attempt = 1, mode = "agent").entered();
            let _inner = tracing::info_span!("turn", attempt = 2).entered();
            tracing::info!(elapsed_ms = 12_u64, mode = %"tool", level = "x", "node finished");
        });
        assert_eq!(line.matches('\n').count(), 1);
        let fields: Map<String, Value> = serde_json::from_str(&line).expect("the line is one JSON object");
        for (name, value) in [
            ("level", json!("INFO")),
            ("message", json!("node finished")),
            ("worker_id", json!("w-1")),
            ("work.id", json!("s/1-0")),
            ("attempt", json!(2)),
            ("mode", json!("tool")),
            ("elapsed_ms", json!(12)),
            ("field.level", json!("x")),
        ] {
            assert_eq!(fields.get(name), Some(&value), "{name}");
        }
        assert!(fields.values().all(|value| !value.is_object()));
        let time = fields["timestamp"].as_str().expect("a text").parse::<jiff::Timestamp>();
        assert!(time.is_ok());
    }

    #[test]
    fn auto_is_json_away_from_a_terminal_and_plain_lines_on_one() {
        let say = || tracing::info!("hello");
        assert!(logged("info", LogFormat::Auto, false, say).starts_with('{'));
        let plain = logged("info", LogFormat::Auto, true, say);
        assert!(plain.contains("hello") && !plain.starts_with('{') && !plain.contains('\u{1b}'));
    }

    #[test]
    fn directives_decide_by_target() {
        let lines = logged("warn,there=debug", LogFormat::Json, false, || {
            tracing::info!("not this");
            tracing::debug!(target: "there", "but this");
        });
        assert!(lines.contains("but this") && !lines.contains("not this"));
    }

    #[test]
    fn the_http_servers_own_words_are_told_only_if_asked_for() {
        let say = || tracing::info!(target: "actix_server::builder", "starting");
        assert_eq!(logged("info", LogFormat::Json, false, say), "");
        assert!(logged("warn,actix_server=info", LogFormat::Json, false, say).contains("starting"));
    }

    #[test]
    fn wrong_directives_are_refused_without_their_text() {
        let log = LogConfig { level: String::from("hunter2=secret=x"), format: LogFormat::Json };
        let error = subscriber(&log, "w", false, false, std::io::sink).err().expect("they are wrong");
        assert!(error.to_string().contains("log.level") && !error.to_string().contains("hunter2"));
    }
}
