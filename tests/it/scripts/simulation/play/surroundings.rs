//! What others do meanwhile, and the end of a history: people, the janitor, clocks, Redis itself.

use super::*;

impl Play<'_> {
    pub(super) async fn redrive(&mut self, pick: usize, stale: bool) -> Check {
        let there = |(work, letter): &&(usize, DeadLetter)| self.model.redrivable(&letter.id, *work).is_some();
        let seen: Vec<_> = self.seen.iter().filter(|seen| stale || there(seen)).collect();
        let Some((work, letter)) = seen.get(pick % seen.len().max(1)).map(|seen| (*seen).clone()) else {
            return Ok(());
        };
        let expected = self.model.redrivable(&letter.id, work);
        match (answered("a retry", self.letters().retry(&letter).await)?, expected) {
            (Redriven::Added(entry), Some(true)) => {
                let before = &self.model.works[work];
                let meta = Meta {
                    origin: Some(before.first.to_string()),
                    attempt: before.meta.attempt,
                    redriven: before.meta.redriven + 1,
                    ..Meta::default()
                };
                self.model.redriven(&letter.id, work, Id::parse(entry.as_str()), meta);
                Ok(())
            }
            (Redriven::Taken { .. }, Some(false)) | (Redriven::Gone, None) => Ok(()),
            (found, expected) => Err(format!("a retry: {found:?}, but it should be {expected:?}")),
        }
    }

    pub(super) async fn order(&mut self, run: usize, give: bool) -> Check {
        let orders = CancelOrders::new(self.access.link.clone(), self.world.keys.clone(), Duration::from_secs(3600));
        let node = (run < RUNS).then(|| node_id(run));
        if give {
            let order = CancelOrder::bare(if node.is_some() { CancelScope::Node } else { CancelScope::Graph });
            self.model.orders.insert(run);
            answered("an order", orders.give(&graph(), node.as_ref(), &order).await)
        } else {
            let found = answered("taking an order back", orders.take_back(&graph(), node.as_ref()).await)?;
            agree("taking an order back", found, self.model.orders.remove(&run))
        }
    }

    /// What the janitor does changes nothing that is worth anything.
    pub(super) async fn clean(&mut self, worker: usize) -> Check {
        let upkeep = &self.processes[worker].tools.upkeep;
        for stream in &self.model.streams {
            let gone = answered("removing consumers", upkeep.reap(stream, Duration::ZERO).await)?;
            let held = |name: &String| {
                self.model.works.iter().any(|work| {
                    self.model.streams[work.stream] == *stream
                        && matches!(&work.place, Place::Held { owner, .. } if owner.consumer == *name)
                })
            };
            if let Some(name) = gone.iter().find(|name| held(name)) {
                return Err(format!("{name} was removed with what it held"));
            }
            let mended = answered("mending", upkeep.mend(stream).await)?;
            agree("mending", (mended.again, mended.lost), (0, 0))?;
            answered("forgetting crashes", upkeep.uncount(stream).await)?;
        }
        Ok(())
    }

    pub(super) async fn jump(&mut self, ahead: bool) -> Check {
        let mut jump = redis::pipe();
        for (at, stream) in self.model.streams.iter().enumerate() {
            for (entry, work) in self.model.in_stream(at) {
                let Place::Held { owner, .. } = &self.model.works[work].place else { continue };
                let idle = if ahead { 60 * LEASE_MS } else { 0 };
                silence(&mut jump, stream, entry, owner, idle);
            }
            let moment = if ahead { "1" } else { "9000000000000" };
            let parked = self.model.works.iter().filter(|work| work.stream == at);
            for work in parked.filter(|work| matches!(work.place, Place::Parked { .. })) {
                let first = work.first.to_string();
                jump.cmd("ZADD").arg(self.world.keys.parked(stream)).arg("XX").arg(moment).arg(first);
            }
        }
        if !jump.is_empty() {
            jump.exec_async(&mut self.world.raw.clone()).await.expect("the server takes it");
        }
        if ahead {
            self.model.late()
        } else {
            self.model.early()
        }
        Ok(())
    }

    pub(super) async fn stall(&mut self, pick: usize) -> Check {
        let held: Vec<usize> = (0..self.model.works.len())
            .filter(|at| matches!(self.model.works[*at].place, Place::Held { silent: false, .. }))
            .collect();
        let Some(&at) = held.get(pick % held.len().max(1)) else { return Ok(()) };
        let work = &mut self.model.works[at];
        let Place::Held { entry, owner, silent } = &mut work.place else { return Ok(()) };
        let mut stall = redis::pipe();
        silence(&mut stall, &self.model.streams[work.stream], *entry, owner, 60 * LEASE_MS);
        stall.exec_async(&mut self.world.raw.clone()).await.expect("the server takes it");
        *silent = true;
        Ok(())
    }

    pub(super) async fn forget(&mut self) -> Check {
        let mut forget = redis::pipe();
        for stream in &self.model.streams {
            forget.cmd("XGROUP").arg("DESTROY").arg(stream).arg(GROUP);
            forget.cmd("XGROUP").arg("CREATE").arg(stream).arg(GROUP).arg("0");
        }
        forget.exec_async(&mut self.world.raw.clone()).await.expect("the server takes it");
        self.model.forgotten();
        Ok(())
    }

    /// In the end one healthy worker is left, and everything that was ever submitted ends.
    pub async fn finish(&mut self) -> Check {
        for worker in 1..WORKERS {
            self.processes[worker].held.clear();
        }
        let mut rounds = 0;
        while self.model.works.iter().any(|work| !matches!(work.place, Place::Gone | Place::Dead)) {
            rounds += 1;
            if rounds > ROUNDS {
                return Err(format!("work is stuck: {:?}", self.model.works));
            }
            self.step(&Operation::Late).await?;
            for stream in 0..STREAMS {
                self.step(&Operation::Move { stream, lost: false, between: vec![] }).await?;
                let (limit, suspects, between) = (100, Some(100), vec![]);
                let claim = Operation::Claim { worker: 0, stream, limit, suspects, lost: false, between };
                self.step(&claim).await?;
                self.step(&Operation::Stranded { worker: 0, stream }).await?;
            }
            self.step(&Operation::Read { worker: 0, permits: STREAMS, lost: false }).await?;
            while !self.processes[0].held.is_empty() {
                let (ending, between) = (Ending::Completed, vec![]);
                self.step(&Operation::Open { worker: 0, pick: 0 }).await?;
                self.step(&Operation::Settle { worker: 0, pick: 0, ending, large: false, lost: false, between })
                    .await?;
            }
        }
        self.nothing_is_left().await
    }

    /// Each identity has its end, and nothing of the work itself is left in Redis.
    async fn nothing_is_left(&mut self) -> Check {
        for (at, run) in self.model.runs.iter().enumerate() {
            let submitted = self.model.works.iter().any(|work| work.run == Some(at));
            let mine = format!(r#""node":"{}""#, node(at));
            let ends = self.model.events.iter().filter(|(_, event)| event.contains(&mine)).count();
            if submitted && !(1..=1 + run.redriven).contains(&ends) {
                return Err(format!("identity {at} has {ends} terminal events"));
            }
        }
        self.clean(0).await?;
        for stream in self.model.streams.clone() {
            let keys = &self.world.keys;
            for key in [keys.crashes(&stream), keys.parked(&stream), keys.parked_bodies(&stream)] {
                agree(&format!("{key} is left"), self.world.redis::<bool>(&["EXISTS", &key]).await, false)?;
            }
            agree("entries are left", self.world.length(&stream).await, 0)?;
            let left: Vec<Vec<redis::Value>> = self.world.redis(&["XINFO", "CONSUMERS", &stream, GROUP]).await;
            if left.len() > 1 {
                return Err(format!("consumers are left: {left:?}"));
            }
        }
        let staged: Vec<String> = self.world.redis(&["KEYS", &self.world.key("staged:*")]).await;
        agree("staged outputs", staged, Vec::new())
    }
}
