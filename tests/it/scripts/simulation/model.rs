//! What is promised, as plain values without Redis: where each piece of work is, who may write, and what each request
//! has to be answered. Nothing here knows how a script does it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use da_node_executor::clients::redis::RELEASED;
use da_node_executor::domain::event::{EventType, terminal_event_id};
use da_node_executor::domain::ids::{EntryId, WorkId};
use da_node_executor::domain::work::Meta;

/// An entry id that is ordered as Redis orders it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub u64, pub u64);

impl Id {
    pub fn parse(text: &str) -> Self {
        let (millis, number) = text.split_once('-').expect("an entry id has two parts");
        Self(millis.parse().expect("a number"), number.parse().expect("a number"))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}

/// Who has an entry, and since which delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    pub consumer: String,
    pub deliveries: u64,
}

/// Where a piece of work is: always in exactly one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In its stream, read by nobody.
    Waiting(Id),
    /// Somebody has it; `silent` once the lease ran out.
    Held { entry: Id, owner: Owner, silent: bool },
    /// Outside of the stream until it is due.
    Parked { due: bool },
    /// Gone for good: it ended, or another piece of work has its identity.
    Gone,
    /// Among the dead letters, and nowhere else.
    Dead,
}

/// One submitted item on its way.
#[derive(Debug, Clone)]
pub struct Work {
    pub stream: usize,
    /// The entry id under which it first came.
    pub first: Id,
    /// The run it is for; none for one that cannot be understood.
    pub run: Option<usize>,
    pub place: Place,
    /// What the worker wrote beside it.
    pub meta: Meta,
    /// Processes that died with the present entry.
    pub crashes: i64,
}

impl Work {
    pub fn entry(&self) -> Option<Id> {
        match self.place {
            Place::Waiting(entry) | Place::Held { entry, .. } => Some(entry),
            Place::Parked { .. } | Place::Gone | Place::Dead => None,
        }
    }
}

/// Who has a run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Record {
    #[default]
    Free,
    Running {
        work: usize,
        entry: Id,
    },
    Parked {
        work: usize,
        owner: Owner,
    },
    Done {
        work: usize,
        owner: Owner,
        event: String,
    },
}

/// One identity.
#[derive(Debug, Clone, Default)]
pub struct Run {
    pub record: Record,
    pub journal: BTreeMap<String, String>,
    pub node_state: Option<String>,
    pub blob: Option<String>,
    /// How often a dead letter of it was put back.
    pub redriven: usize,
}

/// What a request to end, park or open comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Done,
    Again,
    Duplicate,
    Lost,
}

/// The header of a journal that begins with a question.
pub const HEADER: &str = r#"{"v":1}"#;
/// The state of a node that waits for somebody.
pub fn waits(run: usize) -> String {
    format!(r#"{{"node_id":"n{run}","status":"waiting","run_id":"r"}}"#)
}

/// The state of the same node once it goes on.
fn goes_on(run: usize, work: &str) -> String {
    let beginning = format!(r#"{{"node_id":"n{run}","status":"running","started_at":"1970-01-01T00:00:00Z""#);
    format!(r#"{beginning},"run_id":"r","metadata":{{"work_id":"{work}"}}}}"#)
}

/// An answer, whatever its words are.
pub const SAID: &str = "said";

/// A question that a run asks when it begins to wait.
#[derive(Debug, Clone)]
pub struct Question {
    /// Its field in the journal.
    pub ask: String,
    /// The field of its answer.
    pub said: String,
    pub question: String,
}

/// What an end writes.
#[derive(Debug, Clone)]
pub struct End {
    pub kind: EventType,
    pub event: String,
    pub node_state: String,
    pub blob: Option<String>,
    pub letter: bool,
}

/// An entry as it was seen before a takeover of it is asked for.
#[derive(Debug, Clone)]
pub struct Seen {
    pub work: usize,
    pub entry: Id,
    pub owner: Owner,
}

#[derive(Debug, Clone)]
pub struct Model {
    pub streams: Vec<String>,
    pub works: Vec<Work>,
    pub runs: Vec<Run>,
    /// Terminal events in the order of their counts.
    pub events: Vec<(EventType, String)>,
    /// Dead letters: the work and the letter's place among those of its stream.
    pub letters: Vec<(usize, String)>,
    /// Nodes that somebody ordered to stop; the last one stands for the graph.
    pub orders: BTreeSet<usize>,
}

impl Model {
    pub fn new(streams: Vec<String>, runs: usize) -> Self {
        let runs = vec![Run::default(); runs];
        Self { streams, works: vec![], runs, events: vec![], letters: vec![], orders: BTreeSet::new() }
    }

    pub fn name(&self, work: usize) -> String {
        let Work { stream, first, .. } = &self.works[work];
        format!("{}/{first}", self.streams[*stream])
    }

    pub fn submitted(&mut self, stream: usize, entry: Id, run: Option<usize>) {
        let place = Place::Waiting(entry);
        self.works.push(Work { stream, first: entry, run, place, meta: Meta::default(), crashes: 0 });
    }

    pub fn ordered(&self, run: usize) -> bool {
        self.orders.contains(&run) || self.orders.contains(&self.runs.len())
    }

    /// The work that an entry stands for now.
    pub fn at(&self, stream: usize, entry: Id) -> Option<usize> {
        self.works.iter().position(|work| work.stream == stream && work.entry() == Some(entry))
    }

    pub fn in_stream(&self, stream: usize) -> Vec<(Id, usize)> {
        let of_stream = self.works.iter().enumerate().filter(|(_, work)| work.stream == stream);
        let mut found: Vec<_> = of_stream.filter_map(|(at, work)| Some((work.entry()?, at))).collect();
        found.sort_unstable();
        found
    }

    /// Which work a read of `permits` entries delivers: the streams in their order, or one each.
    pub fn read(&mut self, permits: usize, consumer: &str) -> Vec<usize> {
        let mut found = Vec::new();
        for stream in 0..self.streams.len() {
            let waits = |at: &usize| matches!(self.works[*at].place, Place::Waiting(_));
            found.extend(self.in_stream(stream).into_iter().map(|(_, at)| at).find(waits));
        }
        found.truncate(permits);
        for &at in &found {
            let Place::Waiting(entry) = self.works[at].place else { continue };
            let owner = Owner { consumer: String::from(consumer), deliveries: 1 };
            self.works[at].place = Place::Held { entry, owner, silent: false };
        }
        found
    }

    /// The work, if exactly this owner has it.
    fn owned(&self, stream: usize, entry: Id, by: &Owner) -> Option<usize> {
        let at = self.at(stream, entry)?;
        matches!(&self.works[at].place, Place::Held { owner, .. } if owner == by).then_some(at)
    }

    /// Whether somebody else has the run or ended it.
    fn taken(&self, run: usize, by: usize) -> bool {
        match &self.runs[run].record {
            Record::Free => false,
            Record::Done { .. } => true,
            Record::Parked { work, .. } | Record::Running { work, .. } => *work != by,
        }
    }

    fn drop_entry(&mut self, at: usize, place: Place) {
        self.works[at].place = place;
        self.works[at].crashes = 0;
    }

    /// The journal that whoever opens it goes on from, with the answer.
    pub fn open(&mut self, stream: usize, entry: Id, by: &Owner) -> (Answer, BTreeMap<String, String>) {
        let Some(at) = self.owned(stream, entry, by) else { return (Answer::Lost, BTreeMap::new()) };
        let run = self.works[at].run.expect("only what was understood is opened");
        if self.taken(run, at) {
            self.drop_entry(at, Place::Gone);
            return (Answer::Duplicate, BTreeMap::new());
        }
        self.runs[run].record = Record::Running { work: at, entry };
        if self.works[at].meta.asked_at.is_some() && self.runs[run].node_state == Some(waits(run)) {
            self.runs[run].node_state = Some(goes_on(run, self.name(at).as_str()));
        }
        (Answer::Done, self.runs[run].journal.clone())
    }

    pub fn append(&mut self, stream: usize, entry: Id, by: &Owner, write: &Append) -> Answer {
        let Some(at) = self.owned(stream, entry, by) else { return Answer::Lost };
        self.touch(at, false);
        let run = self.works[at].run.expect("only what was understood is run");
        let journal = &mut self.runs[run].journal;
        if write.restart {
            journal.clear();
        }
        journal.insert(String::from("hdr"), write.value.clone());
        let further = journal.insert(write.field.clone(), write.value.clone()).is_none();
        if further && write.progress {
            // Together with those beside the item it is nothing.
            self.works[at].crashes = -i64::from(self.works[at].meta.crashes);
        }
        Answer::Done
    }

    fn touch(&mut self, at: usize, now: bool) {
        if let Place::Held { silent, .. } = &mut self.works[at].place {
            *silent = now;
        }
    }

    fn done(&self, work: usize, by: &Owner, redriven: u32) -> Record {
        let Work { stream, first, .. } = &self.works[work];
        let name = WorkId::new(&self.streams[*stream], &EntryId::new(first.to_string()));
        Record::Done { work, owner: by.clone(), event: terminal_event_id(&name, redriven) }
    }

    /// `delivered` is the work that the request speaks of, whether or not its entry still exists. Without an answer
    /// the entry is somebody else's or nobody's, and a second try tells which.
    pub fn settle(&mut self, delivered: usize, entry: Id, by: &Owner, redriven: u32, end: &End) -> Option<Answer> {
        let Work { stream, run, .. } = self.works[delivered];
        let run = run.expect("only what was understood is settled");
        let done = self.done(delivered, by, redriven);
        match self.owned(stream, entry, by) {
            Some(at) => Some(self.end(at, done, end)),
            None => (self.runs[run].record == done).then_some(Answer::Again),
        }
    }

    /// The second try: work that Redis forgot to have delivered may be ended by whoever has its result.
    pub fn settle_unclaimed(&mut self, delivered: usize, entry: Id, by: &Owner, redriven: u32, end: &End) -> Answer {
        let Work { stream, .. } = self.works[delivered];
        match self.settle(delivered, entry, by, redriven, end) {
            Some(answer) => answer,
            None => match self.at(stream, entry) {
                Some(at) if matches!(self.works[at].place, Place::Waiting(_)) => {
                    let done = self.done(delivered, by, redriven);
                    self.end(at, done, end)
                }
                _ => Answer::Lost,
            },
        }
    }

    fn end(&mut self, at: usize, done: Record, end: &End) -> Answer {
        let run = self.works[at].run.expect("only what was understood is settled");
        let taken = self.taken(run, at);
        self.drop_entry(at, if end.letter { Place::Dead } else { Place::Gone });
        if taken {
            return Answer::Duplicate;
        }
        self.events.push((end.kind, end.event.clone()));
        let run = &mut self.runs[run];
        run.record = done;
        run.journal.clear();
        run.node_state = Some(end.node_state.clone());
        if end.blob.is_some() {
            run.blob.clone_from(&end.blob);
        }
        Answer::Done
    }

    pub fn park(
        &mut self,
        delivered: usize,
        entry: Id,
        by: &Owner,
        meta: Meta,
        due: bool,
        asked: Option<Question>,
    ) -> Answer {
        let Work { stream, run, .. } = self.works[delivered];
        let run = run.expect("only what was understood is parked");
        let record = Record::Parked { work: delivered, owner: by.clone() };
        let Some(at) = self.owned(stream, entry, by) else {
            return if self.runs[run].record == record { Answer::Again } else { Answer::Lost };
        };
        if self.taken(run, at) {
            self.drop_entry(at, Place::Gone);
            return Answer::Duplicate;
        }
        // What was answered before it waits is not waited for.
        let said = asked.as_ref().is_some_and(|asked| self.runs[run].journal.contains_key(&asked.said));
        self.drop_entry(at, Place::Parked { due: due || said });
        if let Some(Question { ask, question, .. }) = asked {
            let state = waits(run);
            let run = &mut self.runs[run];
            run.journal.entry(String::from("hdr")).or_insert_with(|| String::from(HEADER));
            run.journal.entry(ask).or_insert(question);
            run.node_state = Some(state);
        }
        self.works[at].meta = meta;
        self.runs[run].record = record;
        Answer::Done
    }

    /// What a decision about a run comes to.
    pub fn decide(&mut self, run: usize, ask: &str, said: &str) -> &'static str {
        let Run { record, journal, .. } = &mut self.runs[run];
        if !journal.contains_key(ask) {
            return if matches!(record, Record::Done { .. }) { "node_ended" } else { "unknown_wait" };
        }
        if journal.contains_key(said) {
            return "already_decided";
        }
        journal.insert(String::from(said), String::from(SAID));
        if let Record::Parked { work, .. } = *record
            && let Place::Parked { due } = &mut self.works[work].place
        {
            *due = true;
        }
        "counts"
    }

    pub fn due(&self, stream: usize) -> Vec<usize> {
        let due = |work: &&Work| work.stream == stream && matches!(work.place, Place::Parked { due: true });
        let mut found: Vec<usize> = (0..self.works.len()).filter(|&at| due(&&self.works[at])).collect();
        found.sort_by_key(|&at| self.works[at].first);
        found
    }

    /// Work that was found due is back as `entry`.
    pub fn returned(&mut self, at: usize, entry: Id) {
        assert!(matches!(self.works[at].place, Place::Parked { due: true }), "only what is due comes back");
        self.works[at].place = Place::Waiting(entry);
        let run = self.works[at].run.expect("only what was understood is parked");
        if matches!(self.runs[run].record, Record::Parked { work, .. } if work == at) {
            self.runs[run].record = Record::Running { work: at, entry };
        }
    }

    pub fn renew(&mut self, stream: usize, entry: Id, by: &Owner) -> bool {
        self.owned(stream, entry, by).map(|at| self.touch(at, false)).is_some()
    }

    pub fn hand_back(&mut self, stream: usize, entry: Id, by: &Owner) -> bool {
        let Some(at) = self.owned(stream, entry, by) else { return false };
        let owner = Owner { consumer: String::from(RELEASED), deliveries: by.deliveries };
        self.works[at].place = Place::Held { entry, owner, silent: true };
        true
    }

    /// Entries that a consumer may ask for: those handed back, its own stranded ones, or other processes' expired
    /// ones, of which at most `suspects` have a crash on their account already.
    pub fn find(&self, stream: usize, what: Take, me: &str, running: &[Id], limit: usize) -> Vec<Seen> {
        let mut found = Vec::new();
        let mut suspects = if let Take::Expired { suspects } = what { suspects } else { usize::MAX };
        for (entry, at) in self.in_stream(stream) {
            let Place::Held { owner, silent, .. } = &self.works[at].place else { continue };
            let wanted = match what {
                Take::Released => owner.consumer == RELEASED,
                Take::Stranded => owner.consumer == me,
                Take::Expired { .. } => *silent && owner.consumer != me && owner.consumer != RELEASED,
            };
            if !wanted || running.contains(&entry) || found.len() == limit {
                continue;
            }
            if matches!(what, Take::Expired { .. }) && self.works[at].crashes >= 1 {
                if suspects == 0 {
                    continue;
                }
                suspects -= 1;
            }
            found.push(Seen { work: at, entry, owner: owner.clone() });
        }
        found
    }

    /// Takes over what is still as it was seen.
    pub fn take(&mut self, found: &[Seen], what: Take, me: &str) -> Vec<usize> {
        let mut taken = Vec::new();
        for seen in found {
            let work = &mut self.works[seen.work];
            let Place::Held { entry, owner, silent } = &mut work.place else { continue };
            let expired = matches!(what, Take::Expired { .. });
            if *entry != seen.entry || *owner != seen.owner || (expired && !*silent) {
                continue;
            }
            *owner = Owner { consumer: String::from(me), deliveries: owner.deliveries + 1 };
            *silent = false;
            work.crashes += i64::from(expired);
            taken.push(seen.work);
        }
        taken
    }

    pub fn dead_letter(&mut self, stream: usize, entry: Id, by: &Owner) -> Answer {
        let Some(at) = self.owned(stream, entry, by) else { return Answer::Lost };
        self.drop_entry(at, Place::Dead);
        Answer::Done
    }

    /// Whether the work of a letter may be put back: the letter is there, and nobody else has or ended its run.
    pub fn redrivable(&self, letter: &str, work: usize) -> Option<bool> {
        self.letters.iter().find(|(of, id)| *of == work && id == letter)?;
        let Some(run) = self.works[work].run else { return Some(true) };
        Some(match &self.runs[run].record {
            Record::Free => true,
            Record::Done { work: by, .. } => *by == work,
            Record::Running { .. } | Record::Parked { .. } => false,
        })
    }

    pub fn redriven(&mut self, letter: &str, at: usize, entry: Id, meta: Meta) {
        self.letters.retain(|(of, id)| !(*of == at && id == letter));
        let work = &mut self.works[at];
        (work.place, work.meta, work.crashes) = (Place::Waiting(entry), meta, 0);
        if let Some(run) = work.run {
            self.runs[run].record = Record::Free;
            self.runs[run].redriven += 1;
        }
    }

    /// All leases run out, and all that waits is due.
    pub fn late(&mut self) {
        for work in &mut self.works {
            match &mut work.place {
                Place::Held { silent, .. } => *silent = true,
                Place::Parked { due } => *due = true,
                Place::Waiting(_) | Place::Gone | Place::Dead => {}
            }
        }
    }

    /// No lease has run out yet, and nothing that waits is due.
    pub fn early(&mut self) {
        for work in &mut self.works {
            match &mut work.place {
                Place::Held { silent, .. } => *silent = false,
                Place::Parked { due } => *due = false,
                Place::Waiting(_) | Place::Gone | Place::Dead => {}
            }
        }
    }

    /// The group is gone, and with it who had what.
    pub fn forgotten(&mut self) {
        for work in &mut self.works {
            if let Place::Held { entry, .. } = work.place {
                work.place = Place::Waiting(entry);
            }
        }
    }
}

/// Whose entries are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Take {
    Released,
    Stranded,
    Expired { suspects: usize },
}

/// One entry of a journal.
#[derive(Debug, Clone)]
pub struct Append {
    pub field: String,
    pub value: String,
    pub restart: bool,
    pub progress: bool,
}
