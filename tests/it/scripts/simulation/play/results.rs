//! How work leaves a worker and comes back: settling, dead letters, parking and movers.

use da_node_executor::clients::redis::{Decided, LargeOutput};
use da_node_executor::domain::journal::{ask_field, said_field};
use da_node_executor::domain::outcome::Waiting;
use da_node_executor::domain::settlement::{WrittenAsk, WrittenWait};
use da_node_executor::domain::wait::{Action, Ask, AskedBy, Decision, Kind, OnExpiry, WaitId};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::super::model::{HEADER, Question, waits};
use super::*;

/// The one question of a run, the same whoever asks it.
fn question(run: usize) -> Ask {
    let id = |text: &str| text.to_owned();
    Ask {
        wait_id: WaitId::from_text(format!("wait-{run}")),
        kind: Kind::Approval,
        graph_id: id("g").try_into().expect("an id"),
        node_id: node_id(run),
        run_id: id("r").try_into().expect("an id"),
        work_id: id("elsewhere/1-0"),
        message: id("May it be?"),
        schema: json!({}),
        asked_by: AskedBy::Rule { rule: id("pay") },
        tool: None,
        arguments: None,
        last_words: None,
        url: None,
        asked_at: Timestamp::UNIX_EPOCH,
        expires_at: "9000-01-01T00:00:00Z".parse().expect("a time"),
        on_expiry: OnExpiry::Fail,
    }
}

impl Play<'_> {
    /// The same texts whenever it is sent, and others than anybody else's.
    fn settlement(item: &Arc<Delivery>, ending: Ending, large: bool) -> Settlement {
        let by = format!("{} {} {}", item.token.consumer, item.token.deliveries, item.entry);
        let event_id = terminal_event_id(&item.work_id, item.meta.redriven);
        let node = &item.item.node_id;
        let kind = if ending == Ending::Completed { EventType::NodeCompleted } else { EventType::NodeFailed };
        let letter = (ending == Ending::Poison).then(|| Letter {
            data: format!(r#"{{"graph_id":"g","node_id":"{node}","run_id":"r"}}"#).into_bytes(),
            meta: Some(serde_json::to_vec(&item.meta).expect("meta is JSON")),
            ids: Some(item.item.known_ids()),
            work_id: item.work_id.to_string(),
            ..crate::scripts::letter(Vec::new())
        });
        let blob = large.then(|| RawValue::from_string(format!("{by:?}")).expect("JSON"));
        Settlement {
            delivery: Arc::clone(item),
            event: kind,
            event_json: format!(r#"{{"id":"{event_id}","node":"{node}","by":"{by}"}}"#),
            event_id,
            node_state_json: format!(r#"{{"by":"{by}"}}"#),
            write_state: true,
            letter,
            blob: blob.map(LargeOutput::new),
            session: None,
        }
    }

    pub(super) async fn settle(
        &mut self,
        worker: usize,
        at: usize,
        mut ending: Ending,
        mut large: bool,
        lost: bool,
        between: &[Operation],
    ) -> Check {
        let holding = self.processes[worker].held[at].clone();
        let Some(item) = &holding.item else { return self.dead_letter(worker, at, lost).await };
        match holding.sent {
            Some(Sent::End { ending: sent, large: as_sent }) => (ending, large) = (sent, as_sent),
            Some(Sent::Park { due, asks }) => return self.park(worker, at, due, asks, lost).await,
            None if holding.ordered => ending = Ending::Failed,
            None => {}
        }
        let settlement = Self::settlement(item, ending, large);
        let end = End {
            kind: settlement.event,
            event: settlement.event_json.clone(),
            node_state: settlement.node_state_json.clone(),
            blob: settlement.blob.as_ref().map(|blob| String::from(blob.get())),
            letter: settlement.letter.is_some(),
        };
        let redriven = item.meta.redriven;
        let (entry, owner) = (holding.entry(), holding.owner());
        self.processes[worker].held[at].sent = Some(Sent::End { ending, large });
        let settler = self.settler(between);
        let asked = tokio::spawn(async move { settler.settle(&settlement).await });
        let first = self.model.settle(holding.work, entry, &owner, redriven, &end);
        let (asked, expected, after) = match first {
            Some(expected) => (Asked::Sent(asked), expected, between),
            None => {
                // Others pass after the worker was told that the entry is not its own.
                let asked = self.let_others_pass(asked, between).await?;
                let second = self.model.settle_unclaimed(holding.work, entry, &owner, redriven, &end);
                (asked, second, &between[..0])
            }
        };
        let found = ended(answered("a settlement", asked.finish(&self.access.wire).await)?)?;
        agree("a settlement", found, expected)?;
        if end.letter && matches!(found, Answer::Done | Answer::Duplicate) {
            self.lettered(holding.work).await?;
        }
        self.over(worker, &holding, lost);
        for operation in after {
            self.step(operation).await?;
        }
        Ok(())
    }

    pub(super) async fn dead_letter(&mut self, worker: usize, at: usize, lost: bool) -> Check {
        let process = &mut self.processes[worker];
        let holding = process.held[at].clone();
        let name = self.model.name(holding.work);
        let meta = holding.raw.meta.clone();
        let letter = Letter { work_id: name, meta, ..crate::scripts::letter(NONSENSE.as_bytes().to_vec()) };
        let answer = process.tools.settler.dead_letter(&holding.raw, &letter).await;
        let found = ended(answered("a dead letter", answer)?)?;
        let stream = self.stream(&holding.raw.stream);
        agree("a dead letter", found, self.model.dead_letter(stream, holding.entry(), &holding.owner()))?;
        if found == Answer::Done {
            self.lettered(holding.work).await?;
        }
        self.over(worker, &holding, lost);
        Ok(())
    }

    /// A letter was written: the newest one, about this work.
    pub(super) async fn lettered(&mut self, work: usize) -> Check {
        let stream = self.model.streams[self.model.works[work].stream].clone();
        let mut pages = answered("the dead letters", self.letters().read(&stream, Span::all()).await)?;
        let mut newest = None;
        loop {
            let page = answered("the dead letters", pages.next().await)?;
            let Some(last) = page.into_iter().next_back() else { break };
            newest = Some(last);
        }
        let letter = newest.ok_or("there is no dead letter")?;
        agree("the newest letter", &letter.work_id, &self.model.name(work))?;
        self.model.letters.push((work, letter.id.clone()));
        self.seen.push((work, letter));
        Ok(())
    }

    pub(super) async fn park(&mut self, worker: usize, at: usize, mut due: bool, mut asks: bool, lost: bool) -> Check {
        let holding = self.processes[worker].held[at].clone();
        let Some(item) = holding.item.as_ref().filter(|_| !holding.ordered) else { return Ok(()) };
        match holding.sent {
            Some(Sent::Park { due: sent, asks: as_sent }) => (due, asks) = (sent, as_sent),
            Some(Sent::End { .. }) => return Ok(()),
            None => {}
        }
        let meta = Meta {
            origin: Some(item.meta.origin.clone().unwrap_or_else(|| item.entry.to_string())),
            attempt: item.meta.attempt + 1,
            crashes: item.crashes,
            since: Some(Timestamp::UNIX_EPOCH),
            asked_at: asks.then_some(Timestamp::UNIX_EPOCH),
            ..item.meta.clone()
        };
        let wait = if due { Duration::ZERO } else { Duration::from_secs(3600) };
        let process = &mut self.processes[worker];
        process.held[at].sent = Some(Sent::Park { due, asks });
        let run = self.model.works[holding.work].run.ok_or("only what was understood waits")?;
        let ask = question(run);
        let question = json!(ask).to_string();
        let answer = if asks {
            let now = Timestamp::now();
            let waiting = Waiting {
                asks: vec![ask.clone()],
                expires_at: if due { Timestamp::UNIX_EPOCH } else { now + SignedDuration::from_hours(1) },
                until: None,
                waits: BTreeMap::new(),
                since: now,
                header: String::from(HEADER),
                restart: false,
            };
            let written =
                WrittenAsk { wait_id: ask.wait_id.clone(), ask_json: question.clone(), event_json: String::from("{}") };
            let written = WrittenWait { node_json: waits(run), asks: vec![written] };
            process.tools.waiting.wait(item, &meta, &waiting, &written, true).await
        } else {
            process.tools.parking.park(item, &meta, Instant::now() + wait).await
        };
        let found = ended(answered("parking", answer)?)?;
        let asked = asks.then(|| Question { ask: ask_field(&ask.wait_id), said: said_field(&ask.wait_id), question });
        let expected = self.model.park(holding.work, holding.entry(), &holding.owner(), meta, due, asked);
        agree("parking", found, expected)?;
        self.over(worker, &holding, lost);
        Ok(())
    }

    /// Somebody decides what a run waits for, or has waited for, or never asked.
    pub(super) async fn decide(&mut self, run: usize) -> Check {
        if run >= RUNS {
            return Ok(());
        }
        let ask = question(run);
        let decision = Decision {
            graph_id: ask.graph_id.clone(),
            node_id: ask.node_id.clone(),
            run_id: ask.run_id.clone(),
            wait_id: ask.wait_id.clone(),
            action: Action::Accept,
            content: None,
            by: None,
            note: None,
        };
        let answer = self.processes[0].tools.waiting.decide(&decision, None, |_, _| Ok(())).await;
        let found = match answered("a decision", answer)? {
            Decided::Counts => "counts",
            Decided::Refused(refusal) => refusal.code,
            Decided::Lost => "lost",
        };
        let (asked, said) = (ask_field(&ask.wait_id), said_field(&ask.wait_id));
        agree("a decision", found, self.model.decide(run, &asked, &said))
    }

    /// The worker is told how it ended, unless the answer was lost.
    fn over(&mut self, worker: usize, holding: &Holding, lost: bool) {
        if !lost {
            let same = |other: &Holding| other.raw.token == holding.raw.token && other.held() == holding.held();
            self.processes[worker].held.retain(|other| !same(other));
        }
    }

    pub(super) async fn bring_back(&mut self, stream: usize, between: &[Operation]) -> Check {
        let stream = [stream, 1 - stream].into_iter().find(|at| !self.model.due(*at).is_empty()).unwrap_or(stream);
        let due = self.model.due(stream);
        let waiting = |work: &&Work| work.stream == stream && matches!(work.place, Place::Parked { .. });
        let waiting = self.model.works.iter().filter(waiting).count();
        let lot = self.lot(between);
        let name: Arc<str> = Arc::from(self.model.streams[stream].as_str());
        let asked = tokio::spawn(async move { lot.bring_back(&name, 100).await });
        let asked = self.let_others_pass(asked, between).await?;
        let still: Vec<usize> =
            due.iter().copied().filter(|at| self.model.works[*at].place == Place::Parked { due: true }).collect();
        let before: HashSet<Id> = self.model.in_stream(stream).into_iter().map(|(id, _)| id).collect();
        let moved = answered("bringing back", asked.finish(&self.access.wire).await)?;
        let expected = Moved { waiting: waiting as u64, found: due.len(), returned: still.len() as u64, bodiless: 0 };
        agree("bringing back", moved, expected)?;
        let new: Vec<_> = self.entries(stream).await.into_iter().filter(|(id, _)| !before.contains(id)).collect();
        agree("entries that came back", new.len(), still.len())?;
        for at in still {
            let first = self.model.works[at].first.to_string();
            let found = new.iter().find(|(_, meta)| meta.origin.as_deref() == Some(first.as_str()));
            let (entry, _) = found.ok_or("work did not come back under its first id")?;
            self.model.returned(at, *entry);
        }
        Ok(())
    }

    pub(super) async fn entries(&self, stream: usize) -> Vec<(Id, Meta)> {
        let stream = &self.model.streams[stream];
        let entries: Vec<(String, HashMap<String, String>)> = self.world.redis(&["XRANGE", stream, "-", "+"]).await;
        let meta = |fields: &HashMap<String, String>| {
            fields.get("meta").map_or_else(Meta::default, |meta| serde_json::from_str(meta).expect("we wrote it"))
        };
        entries.iter().map(|(id, fields)| (Id::parse(id), meta(fields))).collect()
    }
}
