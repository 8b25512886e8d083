//! `current_time`: what time it is, in any time zone of the IANA database (which is compiled in).

use jiff::Timestamp;
use jiff::tz::{TimeZone, db};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::domain::node::nearest;
use crate::domain::outcome::Failure;
use crate::domain::tool::ToolHints;
use crate::tools::registry::Registry;

pub(super) const NAME: &str = "current_time";

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CurrentTime {
    /// IANA name of a time zone, such as "Europe/Berlin"; UTC if absent.
    timezone: Option<String>,
}

pub(super) fn register(registry: &mut Registry) {
    let description = "Tells the current date and time as RFC 3339, with the weekday and the Unix time in seconds.";
    registry.register(NAME, description, ToolHints::READ_ONLY, |args: CurrentTime, _| async move {
        tell(Timestamp::now(), args.timezone.as_deref())
    });
}

fn tell(now: Timestamp, name: Option<&str>) -> Result<Value, Failure> {
    let zone = match name.map(str::trim) {
        None | Some("") => TimeZone::UTC,
        Some(name) => TimeZone::get(name).map_err(|_| unknown_zone(name))?,
    };
    let local = now.to_zoned(zone);
    let zone = local.time_zone().iana_name().unwrap_or("UTC");
    let time = match zone {
        "UTC" => now.to_string(),
        _ => now.display_with_offset(local.offset()).to_string(),
    };
    Ok(json!({
        "time": time,
        "timezone": zone,
        "weekday": local.strftime("%A").to_string(),
        "unix": now.as_second(),
    }))
}

fn unknown_zone(name: &str) -> Failure {
    let known: Vec<String> = db().available().map(|name| name.to_string()).collect();
    let hint = nearest(name, known.iter().map(String::as_str))
        .map(|near| format!("did you mean \"{near}\"?"))
        .unwrap_or_else(|| String::from("use an IANA name such as \"Europe/Berlin\""));
    Failure::validation("unknown_timezone", format!("there is no time zone {name:?}; {hint}"))
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZoneDatabase;

    use super::*;
    use crate::tools::builtin::testing::call;

    fn at(name: Option<&str>) -> Value {
        let now = "2026-07-01T22:30:00.25Z".parse().expect("a timestamp");
        tell(now, name).expect("a known zone")
    }

    #[test]
    fn the_time_is_rfc_3339_in_utc_or_in_the_zone_asked_for() {
        assert_eq!(
            at(None),
            json!({"time": "2026-07-01T22:30:00.25Z", "timezone": "UTC", "weekday": "Wednesday", "unix": 1_782_945_000})
        );
        let berlin = at(Some("Europe/Berlin"));
        assert_eq!(berlin["time"], "2026-07-02T00:30:00.25+02:00");
        assert_eq!((&berlin["timezone"], &berlin["weekday"]), (&json!("Europe/Berlin"), &json!("Thursday")));
        assert_eq!(at(Some("Asia/Kathmandu"))["time"], "2026-07-02T04:15:00.25+05:45");
    }

    #[test]
    fn an_unknown_zone_is_named_with_the_nearest_one() {
        let failure = tell(Timestamp::now(), Some("Europe/Berln")).expect_err("unknown");
        assert_eq!(failure.code, "unknown_timezone");
        assert!(failure.message.contains("did you mean \"Europe/Berlin\"?"), "{}", failure.message);
    }

    #[test]
    fn zones_are_known_on_a_system_that_has_none() {
        assert!(TimeZoneDatabase::bundled().get("America/Sao_Paulo").is_ok());
    }

    #[tokio::test]
    async fn a_zone_that_is_no_text_is_refused() {
        let failure = call(NAME, json!({"timezone": 2})).await.expect_err("not a text");
        assert_eq!(failure.code, "invalid_arguments");
        let failure = call(NAME, json!({"zone": "UTC"})).await.expect_err("unknown member");
        assert!(failure.message.contains("`zone`"));
    }

    #[tokio::test]
    async fn the_clock_runs() {
        let told = call(NAME, json!({})).await.expect("no argument is needed");
        let time: Timestamp = told["time"].as_str().expect("a text").parse().expect("RFC 3339");
        assert!((Timestamp::now() - time).get_seconds().abs() < 5);
    }
}
