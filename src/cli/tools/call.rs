//! `tools call`: one tool, by hand: the arguments checked before anything is sent, the result on stdout as JSON.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::app::wiring::Running;
use crate::cli::tools::with_tools;
use crate::cli::{
    FAILED, FAULT, INTERRUPTED, REFUSED, Settings, UNAVAILABLE, WRONG_ARGUMENTS, WRONG_CONFIG, complain, fail,
    print_line, print_note, read_input,
};
use crate::domain::ids::{EntryId, GraphId, NodeId, RunId, WorkId};
use crate::domain::outcome::{Category, Failure};
use crate::domain::task::{OpenTask, TaskNews, ToolAnswer};
use crate::domain::tool::{Arguments, ToolOutput, ToolSpec};
use crate::modes::give_up_tasks;
use crate::modes::schema::Schema;
use crate::ports::{CallContext, ToolCall, Tools};
use crate::retry::Retry;

/// What the exit codes mean, beside those that every command has.
pub(super) const HELP: &str = "Exit codes:
  0    the tool answered
  1    the tool says that it failed; what it says is on stdout all the same
  2    the arguments do not fit, or there is no such tool
  69   the server does not answer in time, or fails in a way that another try may cure
  70   a fault of the worker itself
  76   the server refused the call, or its answer cannot be used
  78   the configuration does not allow it
  130  interrupted; the server was told";

/// Arguments of `tools call`.
#[derive(Debug, Args)]
pub(super) struct CallArgs {
    /// The tool: `server/tool`, or its name alone where that is clear, as for built-in functions.
    tool: String,
    /// Its arguments: a JSON object, `@FILE`, or `-` for stdin; none if absent.
    arguments: Option<String>,
    /// How long it may take; the limits of the server and of the tool hold as well.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// Print the whole result, content blocks included, instead of what a node would have as its output.
    #[arg(long)]
    raw: bool,
}

/// How a call ended.
enum Ended {
    Answered(ToolOutput),
    /// The tool's schema does not fit the arguments.
    Unfit(String),
    Failed(Failure),
    Interrupted,
}

/// Makes the call; the answer is the exit code.
pub(super) fn run(settings: &Settings, args: &CallArgs) -> u8 {
    let arguments = match arguments(args.arguments.as_deref()) {
        Ok(arguments) => arguments,
        Err(error) => {
            fail(error);
            return WRONG_ARGUMENTS;
        }
    };
    if args.tool.contains('*') {
        complain("a call is of one tool, so its name has no `*`; `tools list` shows the names");
        return WRONG_ARGUMENTS;
    }
    let config = match settings.config() {
        Ok(config) => config,
        Err(code) => return code,
    };
    let limit = args.timeout.unwrap_or(config.limits.node_timeout);
    let ended = with_tools(settings, &config, async |running| {
        let open = Open::default();
        let ended = tokio::select! {
            ended = call(&running, &args.tool, arguments, limit, &open) => ended,
            _ = tokio::signal::ctrl_c() => Ended::Interrupted,
        };
        give_up_tasks(&running.tools, open.take().into_iter().collect()).await;
        ended
    });
    match ended {
        Ok(Ended::Answered(output)) => print(output, args.raw),
        Ok(Ended::Unfit(complaints)) => {
            complain(format_args!("the arguments of `{}` do not fit its schema: {complaints}", args.tool));
            WRONG_ARGUMENTS
        }
        Ok(Ended::Failed(failure)) => {
            complain(format_args!("{} ({})", failure.message, failure.code));
            code_of(&failure)
        }
        Ok(Ended::Interrupted) => INTERRUPTED,
        Err(code) => code,
    }
}

/// The task that the server works on, while it does.
type Open = RefCell<Option<OpenTask>>;

async fn call(running: &Running, name: &str, arguments: Arguments, limit: Duration, open: &Open) -> Ended {
    let context = CallContext {
        graph_id: GraphId::new("tools-call").expect("a plain id"),
        node_id: NodeId::new("tools-call").expect("a plain id"),
        run_id: RunId::new(uuid::Uuid::now_v7().to_string()).expect("a plain id"),
        work_id: WorkId::new("tools-call", &EntryId::new("0-0")),
        traceparent: None,
        idempotency_key: uuid::Uuid::now_v7().to_string(),
        deadline: Instant::now() + limit,
    };
    let found = match running.tools.find(&[name.to_owned()], context.deadline).await {
        Ok(found) => found,
        Err(failure) => return Ended::Failed(failure),
    };
    found.warnings.iter().for_each(print_note);
    let spec = found.tools.into_iter().next().expect("a name that finds nothing is a failure");
    // A built-in function checks for itself and says more.
    if spec.target.server.is_some()
        && let Err(complaints) = fits(&spec, &arguments)
    {
        return Ended::Unfit(complaints);
    }
    let call =
        ToolCall { target: spec.target, arguments: Arc::new(arguments), context, progress: None, questions: None };
    match to_its_end(&running.tools, call, open).await {
        Ok(output) => Ended::Answered(output),
        Err(failure) => Ended::Failed(failure),
    }
}

/// A call to its end, whatever its server makes of it.
async fn to_its_end(tools: &impl Tools, call: ToolCall, open: &Open) -> Result<ToolOutput, Failure> {
    let mut task = match tools.call(call.clone()).await? {
        ToolAnswer::Done(output) => return Ok(output),
        ToolAnswer::Task(task) => task,
    };
    open.replace(Some(OpenTask { target: call.target.clone(), id: task.id.clone() }));
    let mut told = None;
    loop {
        let due = Instant::now() + task.wait(Timestamp::now());
        tokio::time::sleep_until(due.min(call.context.deadline).into()).await;
        if Instant::now() >= call.context.deadline {
            let message = format!("the task `{}` did not end in time; raise `--timeout`", task.id);
            return Err(Failure::permanent("timeout", message));
        }
        let news = tools.look(call.clone(), task.clone()).await;
        let now = Timestamp::now();
        match news {
            Ok(TaskNews::GoesOn { pace, message, answered }) => {
                if message != told {
                    message.iter().for_each(print_note);
                    told = message;
                }
                task.answered.extend(answered);
                task.goes_on(pace, now);
            }
            Ok(TaskNews::Ended(ended)) => {
                open.take();
                return ended;
            }
            Ok(TaskNews::Lost(failure)) => {
                open.take();
                return Err(failure);
            }
            Err(failure) => match failure.retry() {
                Retry::After(asked) if task.away(asked, now) => print_note(&failure),
                Retry::After(_) | Retry::Never => return Err(failure),
            },
        }
    }
}

fn fits(spec: &ToolSpec, arguments: &Arguments) -> Result<(), String> {
    match Schema::compile(Arc::clone(&spec.input_schema)) {
        Ok(schema) => schema.check(&Value::Object(arguments.clone())),
        Err(error) => {
            print_note(format_args!("the tool's schema cannot be used, the arguments go unchecked: {error}"));
            Ok(())
        }
    }
}

/// The arguments as they were given. The text of what is no JSON is not repeated.
fn arguments(given: Option<&str>) -> anyhow::Result<Arguments> {
    let (text, place) = match given {
        None => return Ok(Arguments::new()),
        Some("-") => (read_input(Path::new("-"))?, "stdin"),
        Some(text) => match text.strip_prefix('@') {
            Some(path) => (read_input(Path::new(path))?, path),
            None => (text.to_owned(), "the argument"),
        },
    };
    match serde_json::from_str(&text) {
        Ok(Value::Object(arguments)) => Ok(arguments),
        Ok(_) => Err(anyhow::anyhow!("{place} is JSON, but no object; write {{\"name\": value}}")),
        Err(error) => Err(anyhow::anyhow!("{place} is not JSON: {error}")),
    }
}

fn print(output: ToolOutput, raw: bool) -> u8 {
    let code = if output.is_error { FAILED } else { 0 };
    let shown = if raw {
        let mut whole = json!({"content": output.content, "isError": output.is_error});
        if let Some(structured) = output.structured {
            whole["structuredContent"] = structured;
        }
        whole
    } else {
        output.into_value()
    };
    print_line(shown);
    code
}

fn code_of(failure: &Failure) -> u8 {
    match (&*failure.code, failure.category) {
        ("unknown_tool" | "unknown_server", _) | (_, Category::Validation) => WRONG_ARGUMENTS,
        ("timeout" | "mcp_timeout", _) | (_, Category::Retriable) => UNAVAILABLE,
        (_, Category::Configuration) => WRONG_CONFIG,
        (_, Category::Permanent) => REFUSED,
        (_, Category::Cancelled) => INTERRUPTED,
        (_, Category::Poison | Category::Internal) => FAULT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_come_as_text_from_a_file_or_not_at_all() {
        assert!(arguments(None).expect("none").is_empty());
        assert_eq!(arguments(Some("{\"a\": 1}")).expect("an object")["a"], 1);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a.json");
        std::fs::write(&path, "{\"b\": 2}").expect("writable");
        assert_eq!(arguments(Some(&format!("@{}", path.display()))).expect("an object")["b"], 2);
        assert!(arguments(Some("@/nowhere.json")).is_err());
        for (text, word) in [("[1]", "no object"), ("{", "not JSON"), ("", "not JSON"), ("s3cret", "not JSON")] {
            let error = arguments(Some(text)).expect_err(text).to_string();
            assert!(error.contains(word) && !error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn each_kind_of_failure_has_an_exit_code_of_its_own() {
        for (failure, code) in [
            (Failure::configuration("unknown_tool", ""), 2),
            (Failure::validation("invalid_arguments", ""), 2),
            (Failure::retriable("mcp_connect", ""), 69),
            (Failure::permanent("timeout", ""), 69),
            (Failure::internal("panic", ""), 70),
            (Failure::permanent("mcp_protocol", ""), 76),
            (Failure::configuration("tool_changed", ""), 78),
            (Failure::new(Category::Cancelled, "cancelled", ""), 130),
        ] {
            assert_eq!(code_of(&failure), code, "{}", failure.code);
        }
    }
}
