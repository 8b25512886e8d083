//! What workers ask while they have work: reading, opening, the journal, leases and takeovers.

use super::*;

impl Play<'_> {
    pub(super) async fn submit(&mut self, run: usize, stream: usize) -> Check {
        let item = match run {
            RUNS => String::from(NONSENSE),
            run => format!(r#"{{"graph_id":"g","node_id":"{}","run_id":"r"}}"#, node(run)),
        };
        let entry = self.world.submit_to(&self.model.streams[stream], &item).await;
        self.model.submitted(stream, Id::parse(entry.as_str()), (run < RUNS).then_some(run));
        Ok(())
    }

    pub(super) async fn read(&mut self, worker: usize, permits: usize, lost: bool) -> Check {
        // A read that finds nothing would wait for the server's next tick.
        if !self.model.works.iter().any(|work| matches!(work.place, Place::Waiting(_))) {
            return Ok(());
        }
        let process = &mut self.processes[worker];
        let expected = self.model.read(permits, &process.consumer);
        let found = answered("a read", process.tools.streams.read(permits).await)?;
        self.took("a read", worker, found, expected, lost)
    }

    pub(super) async fn open(&mut self, worker: usize, at: usize) -> Check {
        let holding = self.processes[worker].held[at].clone();
        let Holding { raw, item: Some(item), opened: false, sent: None, .. } = &holding else { return Ok(()) };
        let stream = self.stream(&raw.stream);
        let (expected, journal) = self.model.open(stream, holding.entry(), &holding.owner());
        let process = &mut self.processes[worker];
        let (opened, _) = answered("opening", process.tools.store.open(item, &Wanted::default()).await)?;
        let run = self.model.works[holding.work].run.expect("it was understood");
        let found = match opened {
            Opened::Ready { journal: found, .. } => {
                let text = |value| String::from_utf8(value).expect("we wrote text");
                let mut found: BTreeMap<_, _> = found.into_iter().map(|(name, value)| (name, text(value))).collect();
                sight::without_words(&mut found);
                agree("the journal", found, journal)?;
                agree("an order", false, self.model.ordered(run))?;
                Answer::Done
            }
            Opened::Cancelled { .. } => {
                agree("an order", true, self.model.ordered(run))?;
                process.held[at].ordered = true;
                Answer::Done
            }
            Opened::Duplicate => Answer::Duplicate,
            Opened::Lost => Answer::Lost,
        };
        agree("opening", found, expected)?;
        if found == Answer::Done {
            process.held[at].opened = true;
        } else {
            process.held.remove(at);
        }
        Ok(())
    }

    pub(super) async fn append(
        &mut self,
        worker: usize,
        at: usize,
        field: usize,
        restart: bool,
        progress: bool,
        lost: bool,
    ) -> Check {
        let holding = self.processes[worker].held[at].clone();
        let new = || Self::entry(&holding, field, restart, progress);
        let write = holding.unanswered.clone().unwrap_or_else(new);
        let answer = self.write(worker, &holding, &write).await?;
        let held = &mut self.processes[worker].held;
        if lost {
            held[at].unanswered = Some(write);
        } else if answer == Answer::Lost {
            held.remove(at);
        } else {
            held[at].unanswered = None;
        }
        Ok(())
    }

    fn entry(holding: &Holding, field: usize, restart: bool, progress: bool) -> Append {
        let token = &holding.raw.token;
        let value = format!("{} {}", token.consumer, token.deliveries);
        Append { field: format!("f{field}"), value, restart, progress }
    }

    /// A request arrives that was sent before its entry was handed back.
    pub(super) async fn straggle(&mut self, pick: usize, field: usize) -> Check {
        let Some(holding) = self.stragglers.get(pick % self.stragglers.len().max(1)).cloned() else { return Ok(()) };
        self.write(0, &holding, &Self::entry(&holding, field, false, false)).await.map(drop)
    }

    async fn write(&mut self, worker: usize, holding: &Holding, write: &Append) -> Check<Answer> {
        let Some(item) = &holding.item else { return Err(String::from("only what was understood runs")) };
        let token = &holding.raw.token;
        let entry = JournalEntry {
            header: write.value.clone(),
            field: write.field.clone(),
            value: write.value.clone(),
            restart: write.restart,
            progress: write.progress,
            whole: None,
        };
        let answer = self.processes[worker].tools.journal.append(item, token, &entry).await;
        let found = match answered("an entry of a journal", answer)? {
            Appended::Done => Answer::Done,
            Appended::Lost => Answer::Lost,
        };
        let stream = self.stream(&holding.raw.stream);
        agree("an entry of a journal", found, self.model.append(stream, holding.entry(), &holding.owner(), write))?;
        Ok(found)
    }

    pub(super) async fn hand_back(&mut self, worker: usize, pick: usize) -> Check {
        let Some((worker, at)) = self.choose(worker, pick, |holding| holding.sent.is_none()) else { return Ok(()) };
        let process = &mut self.processes[worker];
        let holding = process.held.remove(at);
        if holding.opened {
            self.stragglers.push(holding.clone());
        }
        let found = answered("handing back", process.tools.leases.hand_back(&[holding.held()]).await)?;
        let stream = self.stream(&holding.raw.stream);
        let kept = self.model.hand_back(stream, holding.entry(), &holding.owner());
        agree("handing back", found, vec![if kept { Renewal::Kept } else { Renewal::Lost }])
    }

    pub(super) async fn renew(&mut self, worker: usize, lost: bool) -> Check {
        let process = &mut self.processes[worker];
        let held: Vec<Held> = process.held.iter().map(Holding::held).collect();
        let found = answered("a renewal", process.tools.leases.renew(&held).await)?;
        let holdings = process.held.clone();
        let mut expected = Vec::new();
        for holding in &holdings {
            let stream = self.stream(&holding.raw.stream);
            let kept = self.model.renew(stream, holding.entry(), &holding.owner());
            expected.push(if kept { Renewal::Kept } else { Renewal::Lost });
        }
        agree("a renewal", &found, &expected)?;
        if lost {
            // Whose lease is lost goes on and does not know it.
            return Ok(());
        }
        let nodes: Vec<usize> = holdings.iter().filter_map(|holding| self.model.works[holding.work].run).collect();
        let names: Vec<_> = nodes.iter().map(|run| (graph(), node_id(*run))).collect();
        let process = &mut self.processes[worker];
        let orders = answered("a look for orders", process.watch.look(&names).await)?;
        let orders: Vec<bool> = orders.iter().map(Option::is_some).collect();
        agree("orders to stop", orders, nodes.iter().map(|run| self.model.ordered(*run)).collect())?;
        // A settlement that was sent is judged by its own answer alone.
        let mut kept = found.iter().map(|renewal| *renewal == Renewal::Kept);
        process.held.retain(|holding| kept.next() == Some(true) || holding.sent.is_some());
        Ok(())
    }

    pub(super) async fn claim(
        &mut self,
        worker: usize,
        stream: usize,
        limit: usize,
        takeover: Takeover,
        lost: bool,
        between: &[Operation],
    ) -> Check {
        let consumer = self.processes[worker].consumer.clone();
        let claimable = |stream: &usize| {
            let (_, ids) = self.running(worker, *stream);
            let find = |what| self.model.find(*stream, what, &consumer, &ids, 1);
            !find(Take::Released).is_empty() || !find(Take::Expired { suspects: 1 }).is_empty()
        };
        let stream = [stream, 1 - stream].into_iter().find(claimable).unwrap_or(stream);
        let (running, ids) = self.running(worker, stream);
        let name: Arc<str> = Arc::from(self.model.streams[stream].as_str());
        let leases = self.leases(&consumer, between);
        let asked = tokio::spawn(async move { leases.claim(&name, &running, limit, takeover).await });
        let expired = match takeover {
            Takeover::Released => None,
            Takeover::Expired { suspects } => Some(Take::Expired { suspects }),
        };
        let look = |model: &Model, what, limit| model.find(stream, what, &consumer, &ids, limit);
        // The first step that finds something is the one that others may pass.
        let released = look(&self.model, Take::Released, limit);
        let silent: Vec<Seen> = match expired {
            Some(expired) if released.is_empty() => look(&self.model, expired, limit),
            _ => Vec::new(),
        };
        let asked = self.let_others_pass(asked, between).await?;
        let mut expected = self.model.take(&released, Take::Released, &consumer);
        if let Some(expired) = expired.filter(|_| expected.len() < limit) {
            let silent = if released.is_empty() { silent } else { look(&self.model, expired, limit - expected.len()) };
            expected.extend(self.model.take(&silent, expired, &consumer));
        }
        let found = answered("a takeover", asked.finish(&self.access.wire).await)?;
        let died = self.processes[worker].consumer != consumer;
        self.took("a takeover", worker, found, expected, lost || died)
    }

    pub(super) async fn stranded(&mut self, worker: usize, stream: usize) -> Check {
        let (running, ids) = self.running(worker, stream);
        let process = &self.processes[worker];
        let name: Arc<str> = Arc::from(self.model.streams[stream].as_str());
        let found = answered("stranded work", process.tools.leases.stranded(&name, &running, 10).await)?;
        let seen = self.model.find(stream, Take::Stranded, &process.consumer, &ids, 10);
        let expected = self.model.take(&seen, Take::Stranded, &process.consumer);
        self.took("stranded work", worker, found, expected, false)
    }
}
