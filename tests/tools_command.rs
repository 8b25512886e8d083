//! `tools list`, `tools call` and `tools pin` against the demo's tool server, and the example of a worker with a function
//! of its own, whose functions are listed, checked and called like the built-in ones.

#[path = "../examples/custom_tool.rs"]
mod custom_tool;
#[path = "mcp/example.rs"]
mod example;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

/// A folder with a configuration that has the demo's server.
struct Bench {
    folder: TempDir,
}

/// What a command said.
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {} {}", self.out, self.err))
    }
}

impl Bench {
    /// The demo's server with these lines beside its command.
    fn new(lines: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let binary = env!("CARGO_BIN_EXE_executor-worker");
        let text = format!("[mcp.servers.demo]\ncommand = {binary:?}\nargs = [\"mcp-demo\"]\n{lines}\n");
        std::fs::write(folder.path().join("worker.toml"), text).expect("the folder is ours");
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Said {
        self.run_with(arguments, "")
    }

    fn run_with(&self, arguments: &[&str], input: &str) -> Said {
        let mut child = Command::new(env!("CARGO_BIN_EXE_executor-worker"))
            .arg("tools")
            .args(arguments)
            .args(["--config", "worker.toml"])
            .current_dir(self.folder.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program can be started");
        // A command that does not read its input may be gone already.
        let _ = child.stdin.take().expect("the pipe was asked for").write_all(input.as_bytes());
        let answer = child.wait_with_output().expect("it ends");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        Said { code: answer.status.code().expect("no signal"), out: text(answer.stdout), err: text(answer.stderr) }
    }
}

fn lock(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).expect("a lock file")).expect("JSON")
}

// --- list -------------------------------------------------------------------------------------------------------

#[test]
fn each_server_is_shown_with_its_state_and_its_tools() {
    let bench = Bench::new("[mcp.servers.gone]\ncommand = \"/nowhere/server\"\n");
    let said = bench.run(&["list", "--json"]);
    assert_eq!(said.code, 1, "one server does not answer: {}", said.err);
    let without = |mut offers: Value| {
        let each = offers.as_array_mut().expect("a list").iter_mut();
        each.for_each(|offer| drop(offer.as_object_mut().expect("an object").remove("took_ms")));
        offers
    };
    assert_eq!(without(said.json()), without(bench.run(&["--json"]).json()), "the same without `list`");
    let offers = said.json();
    let of = |name: &str| {
        let all = offers.as_array().expect("a list").iter();
        all.clone().find(|offer| offer["server"] == name).unwrap_or_else(|| panic!("{name} in {offers}"))
    };
    let demo = of("demo");
    assert_eq!((&demo["state"], &demo["pinned"]), (&json!("answers"), &json!(false)));
    assert!(
        demo["protocol_version"].is_string()
            && demo["era"] == "legacy"
            && demo["took_ms"].is_u64()
            && demo["name"].is_string(),
        "{demo}"
    );
    let tools = demo["tools"].as_array().expect("tools");
    assert!(
        tools.iter().all(|tool| tool["input_schema"].is_object()
            && tool["digest"].as_str().expect("a digest").starts_with("sha256:"))
    );
    assert_eq!(of("gone")["state"], "failed");
    assert!(of("gone")["error"].as_str().is_some_and(|error| error.contains("/nowhere/server")));
    assert!(of("(built in)")["tools"].as_array().is_some_and(|tools| tools.len() >= 4));

    let table = bench.run(&[]);
    assert!(
        table.out.contains("demo") && table.out.contains("answers") && table.out.contains("calculate"),
        "{}",
        table.out
    );
    assert!(table.err.contains("gone cannot be used"), "{}", table.err);
    let one = bench.run(&["list", "--json", "demo"]);
    assert_eq!((one.code, one.json().as_array().map(Vec::len)), (0, Some(1)));
    let unknown = bench.run(&["list", "dmeo"]);
    assert_eq!((unknown.code, unknown.err.contains("did you mean `demo`?")), (2, true), "{}", unknown.err);
}

// --- call -------------------------------------------------------------------------------------------------------

#[test]
fn a_tool_is_called_with_arguments_from_wherever_they_are() {
    let bench = Bench::new("");
    let sum = bench.run(&["call", "calculate", r#"{"expression": "1+1"}"#]);
    assert_eq!((sum.code, sum.out.as_str(), sum.err.as_str()), (0, "2\n", ""));
    let echo = json!({"text": "hello", "delay_ms": 0}).to_string();
    let direct = bench.run(&["call", "demo/slow_echo", &echo]);
    assert_eq!(direct.code, 0, "{}", direct.err);
    std::fs::write(bench.path("a.json"), &echo).expect("the folder is ours");
    assert_eq!(bench.run(&["call", "demo/slow_echo", "@a.json"]).out, direct.out);
    assert_eq!(bench.run_with(&["call", "slow_echo", "-"], &echo).out, direct.out);
    assert_eq!(bench.run(&["call", "current_time"]).code, 0, "no arguments are an empty object");
    let raw = bench.run(&["call", "demo/slow_echo", &echo, "--raw"]).json();
    assert_eq!((&raw["isError"], raw["content"].is_array()), (&json!(false), true), "{raw}");
}

#[test]
fn what_does_not_fit_is_said_before_anything_is_sent() {
    let bench = Bench::new("");
    for (arguments, word) in [
        (vec!["call", "demo/slow_echo", r#"{"text": 7}"#], "`/text`"),
        (vec!["call", "demo/slow_echo", "{}"], "\"text\" is a required"),
        (vec!["call", "calculate", "{}"], "`expression` is missing"),
        (vec!["call", "calculate", "[1]"], "no object"),
        (vec!["call", "calculate", "{"], "not JSON"),
        (vec!["call", "calculate", "@nowhere.json"], "nowhere.json"),
        (vec!["call", "calculat", "{}"], "did you mean `calculate`?"),
        (vec!["call", "demo/slow_eco", "{}"], "did you mean `demo/slow_echo`?"),
        (vec!["call", "demo/*", "{}"], "no `*`"),
    ] {
        let said = bench.run(&arguments);
        assert_eq!((said.code, said.out.as_str()), (2, ""), "{arguments:?}: {}", said.err);
        assert!(said.err.contains(word), "{arguments:?}: {}", said.err);
    }
}

#[test]
fn each_way_to_fail_has_an_exit_code_of_its_own() {
    let bench = Bench::new("deny = [\"count\"]\n[mcp.servers.gone]\nurl = \"http://127.0.0.1:1/mcp\"\n");
    let failing = bench.run(&["call", "demo/flaky", r#"{"key": "k", "fail_times": 1, "how": "tool_error"}"#]);
    assert_eq!(failing.code, 1, "{}", failing.err);
    assert!(!failing.out.is_empty(), "what the tool says of its failure is its result");
    let passing = bench.run(&["call", "demo/flaky", r#"{"key": "k", "fail_times": 1}"#]);
    assert_eq!((passing.code, passing.out.as_str()), (69, ""), "another try would help: {}", passing.err);
    assert_eq!(bench.run(&["call", "demo/count", r#"{"key": "k"}"#]).code, 2, "what is denied is not there");
    assert_eq!(bench.run(&["call", "gone/tool"]).code, 69);
    let late = bench.run(&["call", "demo/slow_echo", r#"{"text": "a", "delay_ms": 20000}"#, "--timeout", "200ms"]);
    assert_eq!((late.code, late.out.as_str()), (69, ""), "{}", late.err);
    let broken = Bench::new("timeout = 5\n").run(&["call", "calculate", "{}"]);
    assert_eq!(broken.code, 78, "{}", broken.err);
}

// --- pin --------------------------------------------------------------------------------------------------------

#[test]
fn what_was_approved_is_offered_and_what_changed_since_is_not() {
    let bench = Bench::new("pin = \"tools.lock\"\n");
    let before = bench.run(&["list"]);
    assert_eq!(before.code, 78, "without the file nothing is approved");
    assert!(before.err.contains("`executor-worker tools pin demo` writes it"), "{}", before.err);

    let unchecked = bench.run(&["pin", "--check"]);
    assert_eq!((unchecked.code, bench.path("tools.lock").exists()), (1, false), "{}", unchecked.err);
    let pinned = bench.run(&["pin"]);
    assert_eq!(pinned.code, 0, "{}", pinned.err);
    assert!(pinned.out.contains("new      demo/slow_echo"), "{}", pinned.out);
    assert_eq!(bench.run(&["pin", "--check", "demo"]).code, 0);
    let call = ["call", "demo/slow_echo", r#"{"text": "a"}"#];
    assert_eq!(bench.run(&call).code, 0);

    // As if the server had described one tool otherwise when it was approved, and had not had another.
    let mut text = lock(&bench.path("tools.lock"));
    let tools = text["servers"]["demo"].as_object_mut().expect("the tools of the server");
    tools.insert(String::from("slow_echo"), json!(format!("sha256:{}", "0".repeat(64))));
    tools.remove("flaky");
    std::fs::write(bench.path("tools.lock"), text.to_string()).expect("the folder is ours");
    for (call, code) in [
        (call, "tool_changed"),
        (["call", "flaky", "{}"], "tool_not_pinned"),
        (["call", "demo/flaky", "{}"], "tool_not_pinned"),
    ] {
        let said = bench.run(&call);
        assert_eq!((said.code, said.out.as_str()), (78, ""), "{}", said.err);
        assert!(said.err.contains(code) && said.err.contains("tools pin demo"), "{}", said.err);
    }
    let listed = bench.run(&["list", "demo"]);
    assert!(listed.out.contains("2 withheld") && listed.out.contains("WITHHELD: new"), "{}", listed.out);
    let shown = bench.run(&["list", "demo", "--json"]).json();
    let held = |name: &str| {
        let tools = shown[0]["tools"].as_array().expect("tools").iter();
        tools.clone().find(|tool| tool["name"] == name).expect("shown all the same")["withheld"].clone()
    };
    assert_eq!(
        (held("slow_echo"), held("flaky"), held("count")),
        (json!("tool_changed"), json!("tool_not_pinned"), Value::Null)
    );
    let again = bench.run(&["pin"]);
    assert!(
        again.out.contains("changed  demo/slow_echo") && again.out.contains("new      demo/flaky"),
        "{}",
        again.out
    );
    assert_eq!(bench.run(&call).code, 0);
}

#[test]
fn a_server_that_does_not_answer_keeps_what_was_approved_of_it() {
    let bench = Bench::new("pin = \"tools.lock\"\n");
    assert_eq!(bench.run(&["pin"]).code, 0);
    let before = lock(&bench.path("tools.lock"));
    std::fs::write(bench.path("worker.toml"), "[mcp.servers.demo]\ncommand = \"/nowhere\"\npin = \"tools.lock\"\n")
        .expect("ours");
    let said = bench.run(&["pin"]);
    assert_eq!((said.code, lock(&bench.path("tools.lock"))), (69, before), "{}", said.err);
    let none = Bench::new("").run(&["pin"]);
    assert_eq!(none.code, 78, "{}", none.err);
    let named = Bench::new("").run(&["pin", "demo"]);
    assert!(named.code == 2 && named.err.contains("mcp.servers.demo.pin"), "{}", named.err);
}

// --- functions of one's own -------------------------------------------------------------------------------------

#[test]
fn a_call_that_becomes_a_task_is_waited_for_and_given_up_when_its_time_is_over() {
    let server = example::example("rmcp_server");
    let bench = Bench::new(&format!("[mcp.servers.sdk]\ncommand = {server:?}\nargs = [\"stdio\"]\n"));
    let said = bench.run(&["call", "sdk/build", r#"{"name": "a house", "ms": 600, "poll_ms": 250}"#]);
    assert_eq!((said.code, said.out.trim()), (0, r#""built a house""#), "{}", said.err);
    assert!(said.err.contains("laying bricks"), "{}", said.err);

    let log = bench.path("log");
    let with = json!({"name": "a tower", "ms": 60_000, "poll_ms": 250, "log": log}).to_string();
    let said = bench.run(&["call", "sdk/build", &with, "--timeout", "1s"]);
    assert_eq!(said.code, 69, "{}", said.err);
    let log = std::fs::read_to_string(log).expect("the server writes down what it does");
    assert_eq!(log, "called a tower\ncancelled a tower\n");
}

/// The exit code of the example with these arguments.
fn code(arguments: &[&str]) -> u8 {
    custom_tool::worker().run(["custom-tool"].iter().chain(arguments).copied())
}

#[test]
fn a_function_of_ones_own_is_called_like_any_other() {
    assert_eq!(code(&["tools", "call", "shout", r#"{"text": "hello", "marks": 2}"#]), 0);
    assert_eq!(code(&["tools", "call", "calculate", r#"{"expression": "1+1"}"#]), 0, "the built-in ones are there too");
}

#[test]
fn its_arguments_are_checked_by_the_schema_of_its_type() {
    for wrong in ["{}", r#"{"text": 1}"#, r#"{"text": "a", "marks": 1000}"#, r#"{"text": "a", "loud": true}"#] {
        assert_eq!(code(&["tools", "call", "shout", wrong]), 2, "{wrong}");
    }
    assert_eq!(code(&["tools", "call", "shuot", "{}"]), 2);
}

#[test]
fn the_configuration_may_speak_of_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let check = |name: &str| {
        let path = folder.path().join("worker.toml");
        std::fs::write(&path, format!("[tools.unknown_outcome]\n{name} = \"retry\"\n")).expect("the folder is ours");
        code(&["config", "check", "--config", path.to_str().expect("a plain path")])
    };
    assert_eq!((check("shout"), check("shuot")), (0, 78));
}
