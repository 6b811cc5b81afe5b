//! One mount of the plane and the task that looks after its process: started, watched, and started again when it dies.
//!
//! The task is the only one that starts the process; everybody else waits for the [`Standing`] that it tells. Made by the plane.

use std::path::PathBuf;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use super::book::Spec;
use super::dynamic::Folders;
use super::plane::Plane;
use super::process::Process;
use super::turns::Turns;
use crate::error::{Error, Kind, Result};
use crate::mount::Watch;

/// The first pause after a start that failed, and after a second short life; each next one is twice as long, up to [`LONGEST`].
const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);

/// How long a process has to live for its end to be a first one again.
const WELL: Duration = Duration::from_secs(60);

/// How a mount's process is.
#[derive(Clone, Debug)]
pub(super) enum Standing {
    /// It is being started; why, where it is not for the first time.
    Starting(Option<Error>),
    /// It answers.
    Serving(Process),
    /// It could not be started; it is tried again after a pause.
    Down(Error),
    /// Nobody wants it any more; it is taken away.
    Retired,
    /// It is taken away.
    Gone,
}

/// One mount.
#[derive(Debug)]
pub(super) struct Host {
    /// What is mounted.
    pub(super) spec: Spec,
    /// Where.
    pub(super) dir: PathBuf,
    /// What is around it, of a dynamic volume.
    pub(super) folders: Option<Folders>,
    standing: watch::Sender<Standing>,
    /// How many wait until it answers.
    waiting: watch::Sender<usize>,
    /// How many are about to show it somewhere. Changed under the lock of the plane's table only.
    pub(super) uses: AtomicUsize,
    /// How often its process was started again.
    pub(super) restarts: AtomicU64,
}

impl Host {
    pub(super) fn new(spec: Spec, dir: PathBuf) -> Arc<Self> {
        let (standing, _) = watch::channel(Standing::Starting(None));
        let (waiting, _) = watch::channel(0);
        let (uses, restarts) = (AtomicUsize::new(0), AtomicU64::new(0));
        let folders = spec.volume.as_ref().and_then(|_| Folders::around(&dir));
        Arc::new(Self { spec, dir, folders, standing, waiting, uses, restarts })
    }

    /// What is mounted, for people: the reference with its digest, or the dynamic volume's id.
    pub(super) fn name(&self) -> &str {
        self.spec.volume.as_deref().unwrap_or(&self.spec.reference)
    }

    /// The process that answers.
    pub(super) fn process(&self) -> Option<Process> {
        match &*self.standing.borrow() {
            Standing::Serving(process) => Some(process.clone()),
            _ => None,
        }
    }

    /// Why nobody answers; `None` where somebody does.
    pub(super) fn trouble(&self) -> Option<String> {
        match &*self.standing.borrow() {
            Standing::Serving(_) => None,
            Standing::Starting(None) => Some("it is being mounted".to_owned()),
            Standing::Starting(Some(error)) => Some(format!("{error}; it is being started again")),
            Standing::Down(error) => Some(format!("it cannot be started again yet: {error}")),
            Standing::Retired | Standing::Gone => Some("it is being taken away".to_owned()),
        }
    }

    /// Waits until it answers; one that could not be started is tried once more, at once.
    ///
    /// # Errors
    /// Why it can't be started.
    pub(super) async fn serving(&self) -> Result<()> {
        // Before who looks after it is told to go on, and no longer than this waits.
        let _waits = Waits::begin(&self.waiting);
        self.change(|now| match now {
            Standing::Down(error) => Some(Standing::Starting(Some(error.clone()))),
            _ => None,
        });
        let mut standing = self.standing.subscribe();
        let settled = standing.wait_for(|now| !matches!(now, Standing::Starting(_))).await;
        match settled.as_deref() {
            Ok(Standing::Serving(_)) => Ok(()),
            Ok(Standing::Down(error)) => Err(error.clone()),
            _ => Err(Error::new(Kind::Kernel, "the mount was taken away meanwhile")),
        }
    }

    /// Waits until somebody waits for its start, or nobody wants it any more.
    async fn awaited(&self) {
        let waited_for = async {
            // Who waited for a start that failed is told so, and does not wait for the next one.
            let _ = self.standing.subscribe().wait_for(|now| matches!(now, Standing::Starting(_))).await;
            let _ = self.waiting.subscribe().wait_for(|waiting| *waiting > 0).await;
        };
        tokio::select! {
            () = waited_for => {}
            () = self.unwanted() => {}
        }
    }

    /// What `start` gives, which is begun once somebody waits for it or there is a turn for it; `None` where nobody wants it by then.
    pub(super) async fn in_turn<T>(&self, turns: &Turns, start: impl Future<Output = T>) -> Option<T> {
        let if_wanted = async { if self.is_wanted() { Some(start.await) } else { None } };
        turns.take(self.awaited(), if_wanted).await
    }

    /// Waits until nobody wants it any more.
    async fn unwanted(&self) {
        let _ =
            self.standing.subscribe().wait_for(|now| matches!(now, Standing::Retired | Standing::Gone)).await;
    }

    /// Waits until it is taken away.
    pub(super) async fn gone(&self) {
        let _ = self.standing.subscribe().wait_for(|now| matches!(now, Standing::Gone)).await;
    }

    /// Nobody wants it any more.
    pub(super) fn retire(&self) {
        self.standing.send_replace(Standing::Retired);
    }

    /// It is taken away.
    pub(super) fn vanish(&self) {
        self.standing.send_replace(Standing::Gone);
    }

    /// It can't be had.
    pub(super) fn fail(&self, error: Error) {
        self.change(|_| Some(Standing::Down(error)));
    }

    pub(super) fn is_wanted(&self) -> bool {
        !matches!(&*self.standing.borrow(), Standing::Retired | Standing::Gone)
    }

    /// Changes the standing of one that is still wanted; whether it was.
    fn change(&self, next: impl FnOnce(&Standing) -> Option<Standing>) -> bool {
        let mut wanted = false;
        self.standing.send_if_modified(|now| {
            wanted = !matches!(now, Standing::Retired | Standing::Gone);
            let next = if wanted { next(now) } else { None };
            let changes = next.is_some();
            if let Some(next) = next {
                *now = next;
            }
            changes
        });
        wanted
    }
}

/// Somebody who waits, counted for as long as that lasts.
struct Waits<'a>(&'a watch::Sender<usize>);

impl<'a> Waits<'a> {
    fn begin(waiting: &'a watch::Sender<usize>) -> Self {
        waiting.send_modify(|waiting| *waiting = waiting.saturating_add(1));
        Self(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting = waiting.saturating_sub(1));
    }
}

/// A process that answers, and whoever has to be told of its end.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) process: Process,
    pub(super) watch: Watch,
    /// Where it is this process's own child: to be waited for.
    pub(super) child: Option<Child>,
}

/// Looks after a mount until nobody wants it and its process has ended. `adopted` is a process that serves it already.
pub(super) async fn attend(plane: Arc<Plane>, host: Arc<Host>, adopted: Option<Running>) {
    let mut next = adopted;
    let mut pause = Duration::ZERO;
    while host.is_wanted() {
        let running = match next.take() {
            Some(adopted) => adopted,
            None => match plane.launch(&host).await {
                Ok(Some(started)) => started,
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(reference = host.name(), "cannot mount: {error}");
                    host.fail(error);
                    pause = longer(pause);
                    rest(&host, pause).await;
                    host.change(again);
                    continue;
                }
            },
        };
        if host.change(|_| Some(Standing::Serving(running.process.clone()))) {
            plane.bind_all(&host).await;
        }
        let begun = tokio::time::Instant::now();
        tokio::select! {
            () = running.watch.end() => {
                reap(running.child);
                if fall(&host) {
                    plane.tally.node.restarts.add(1);
                }
                pause = if begun.elapsed() >= WELL { Duration::ZERO } else { after_a_short_life(&host, pause).await };
            }
            () = host.unwanted() => next = Some(running),
        }
    }
    plane.take_away(&host).await;
    if let Some(running) = next {
        // Whoever has a file open goes on reading it.
        running.watch.end().await;
        reap(running.child);
    }
}

/// The first one is followed by the next at once; of more the pauses get longer. Gives the pause after the next one.
async fn after_a_short_life(host: &Host, pause: Duration) -> Duration {
    if !pause.is_zero() {
        rest(host, pause).await;
    }
    longer(pause)
}

fn longer(pause: Duration) -> Duration {
    pause.saturating_mul(2).clamp(FIRST, LONGEST)
}

fn again(now: &Standing) -> Option<Standing> {
    match now {
        Standing::Down(error) => Some(Standing::Starting(Some(error.clone()))),
        _ => None,
    }
}

/// Notes that the process has ended; whether it is to be started again.
fn fall(host: &Host) -> bool {
    let why = Error::new(Kind::Kernel, "the process that serves it has ended");
    let wanted = host.change(|_| Some(Standing::Starting(Some(why))));
    if wanted {
        tracing::warn!(reference = host.name(), "a mount's process has ended; it is started again");
        host.restarts.fetch_add(1, Ordering::Relaxed);
    }
    wanted
}

async fn rest(host: &Host, pause: Duration) {
    tokio::select! {
        () = tokio::time::sleep(pause) => {}
        () = host.awaited() => {}
    }
}

/// Takes note of a child's end, so that the kernel can forget it.
fn reap(child: Option<Child>) {
    if let Some(mut child) = child
        && let Err(error) = child.wait()
    {
        tracing::debug!(%error, "a mount's process is not ours to wait for");
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use parking_lot::Mutex;

    use super::*;
    use crate::serve::Overrides;

    fn host() -> Arc<Host> {
        let spec = Spec {
            id: "m".into(),
            reference: "r".into(),
            digest: "d".into(),
            settings: Overrides::new(),
            volume: None,
        };
        Host::new(spec, "/nowhere".into())
    }

    #[tokio::test]
    async fn who_waits_for_a_mount_gets_why_it_cannot_be_had() {
        let host = host();
        let waiting = tokio::spawn({
            let host = host.clone();
            async move { host.serving().await }
        });
        while host.standing.receiver_count() == 0 {
            tokio::task::yield_now().await;
        }
        host.fail(Error::new(Kind::Denied, "403"));
        assert_eq!(waiting.await.unwrap().unwrap_err().kind(), Kind::Denied);
        assert!(host.trouble().unwrap().contains("403"));
    }

    #[tokio::test]
    async fn one_that_nobody_wants_is_not_started_again() {
        let host = host();
        assert!(fall(&host));
        assert_eq!(host.restarts.load(Ordering::Relaxed), 1);
        host.retire();
        assert!(!fall(&host));
        host.fail(Error::new(Kind::Kernel, "late"));
        assert!(!host.is_wanted());
        assert!(host.serving().await.is_err());
        host.vanish();
        host.gone().await;
    }

    fn is_begun(begun: &Mutex<Vec<usize>>, number: usize) -> bool {
        begun.lock().contains(&number)
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_are_started_at_once_than_have_a_turn_however_often_they_were_waited_for_before() {
        const SHARE: Duration = Duration::from_secs(10);
        let (turns, begun) = (Arc::new(Turns::new(8, SHARE)), Arc::new(Mutex::new(Vec::new())));
        let hosts: Vec<_> = (0..20).map(|_| host()).collect();
        for host in &hosts {
            let answering = Standing::Serving(Process::of(std::process::id()));
            assert!(host.change(|_| Some(answering)));
            // As who publishes it does each time.
            host.serving().await.unwrap();
            host.serving().await.unwrap();
            assert!(fall(host));
        }
        for (number, host) in hosts.iter().cloned().enumerate() {
            let (turns, begun) = (turns.clone(), begun.clone());
            tokio::spawn(async move {
                let start = async {
                    begun.lock().push(number);
                    pending::<()>().await;
                };
                host.in_turn(&turns, start).await
            });
        }
        let counted_after = async |time: Duration| {
            tokio::time::sleep(time).await;
            begun.lock().len()
        };
        assert_eq!(counted_after(SHARE / 2).await, 8);
        let last = (0..20).rev().find(|number| !is_begun(&begun, *number)).unwrap();
        let waited_for = hosts[last].clone();
        tokio::spawn(async move { waited_for.serving().await });
        assert_eq!(counted_after(SHARE / 4).await, 9);
        assert!(is_begun(&begun, last), "somebody waits for it");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_retired_while_it_waits_for_its_turn_is_not_started() {
        let (turns, host) = (Turns::new(1, Duration::from_secs(10)), host());
        let waiting = host.in_turn(&turns, async { panic!("nobody wants it") });
        let (occupied, retired, ()) = tokio::join!(
            tokio::time::timeout(WELL, turns.take(pending(), pending::<()>())),
            waiting,
            async {
                tokio::task::yield_now().await;
                host.retire();
            }
        );
        assert!(occupied.is_err());
        assert_eq!(retired, None::<()>);
        assert_eq!(host.in_turn(&turns, ready(())).await, None, "nor where there is a turn for it");
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_told_that_a_start_failed_does_not_end_the_pause_before_the_next_one() {
        let (host, begun) = (host(), tokio::time::Instant::now());
        let (told, ()) = tokio::join!(host.serving(), async {
            host.fail(Error::new(Kind::Denied, "403"));
            // Before who waits has been told.
            rest(&host, WELL).await;
        });
        assert!(told.is_err() && begun.elapsed() >= WELL);
        host.change(again);
        let (asked, ()) = tokio::join!(tokio::time::timeout(WELL, host.serving()), rest(&host, 9 * WELL));
        assert!(asked.is_err() && begun.elapsed() < 9 * WELL, "who asks ends it");
    }
}
