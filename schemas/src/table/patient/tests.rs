use super::*;
use object_store::memory::InMemory;

const QUICK: Patience = Patience {
    deadline: Duration::from_millis(20),
    total: Duration::from_secs(10),
    pause: Duration::from_micros(10),
};

fn patient(faults: &str) -> (PatientStore, Arc<InMemory>) {
    let memory = Arc::new(InMemory::new());
    let faulty = FaultyStore::new(memory.clone(), faults.parse().expect("faults"));
    (PatientStore { inner: Arc::new(faulty), patience: QUICK }, memory)
}

fn create() -> PutOptions {
    PutOptions { mode: PutMode::Create, ..PutOptions::default() }
}

fn name(n: usize) -> Path {
    Path::from(format!("log/{n:05}"))
}

#[tokio::test]
async fn every_call_gets_through_a_store_that_fails_or_hangs_a_third_of_the_time() {
    let (store, memory) = patient("fail=0.25,hang=0.05,seed=3");
    for n in 0..100 {
        store.put_opts(&name(n), format!("{n}").into(), create()).await.expect("created");
    }
    for n in 0..100 {
        let found = store.get_opts(&name(n), GetOptions::default()).await.expect("read");
        assert_eq!(found.bytes().await.expect("bytes"), n.to_string());
    }
    let listed: Vec<_> = store.list(None).try_collect().await.expect("listed");
    assert_eq!(listed.len(), 100);
    let gone: Vec<_> = store
        .delete_stream(stream::iter((0..100).map(name).map(Ok)).boxed())
        .try_collect()
        .await
        .expect("deleted");
    assert_eq!(gone.len(), 100);
    assert!(memory.list(None).next().await.is_none());
}

#[tokio::test]
async fn an_object_of_somebody_else_is_not_taken_for_ours() {
    let (store, memory) = patient("fail=0.5,seed=5");
    for n in 0..50 {
        memory.put(&name(n), "theirs".into()).await.expect("written");
        let outcome = store.put_opts(&name(n), "ours".into(), create()).await;
        assert!(matches!(outcome, Err(Error::AlreadyExists { .. })), "{outcome:?}");
        assert_eq!(memory.get(&name(n)).await.expect("there").bytes().await.expect("bytes"), "theirs");
    }
}

#[tokio::test]
async fn a_store_that_is_down_is_an_error_in_the_end() {
    let (store, _) = patient("hang=1");
    let store = PatientStore { patience: Patience { total: Duration::ZERO, ..QUICK }, ..store };
    let error = store.get_opts(&name(1), GetOptions::default()).await.expect_err("no answer");
    let (error, as_ours) = (error.to_string(), crate::Error::from(error));
    assert!(crate::error::is_passing(&as_ours), "{as_ours}");
    assert!(error.contains("in vain, 2 times") && error.contains("no answer within 20ms"), "{error}");
}

#[test]
fn faults_are_read_and_their_mistakes_explained() {
    assert!("fail=0.3,hang=0.1,seed=4".parse::<Faults>().is_ok());
    for (text, says) in [
        ("fail=2", "share from 0 to 1"),
        ("fail", "share from 0 to 1"),
        ("slow=1", "no fault"),
        ("outage=", "no fault"),
        ("seed=x", "whole number"),
        ("fail=0.6,hang=0.6", "more than 1"),
    ] {
        let error = text.parse::<Faults>().expect_err(text);
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[tokio::test]
async fn an_outage_lasts_as_long_as_its_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let faults = "outage=DOWN".parse::<Faults>().expect("faults").at(dir.path());
    let faulty = FaultyStore::new(Arc::new(InMemory::new()), faults);
    faulty.put(&name(1), "there".into()).await.expect("written");
    std::fs::write(dir.path().join("DOWN"), "").expect("written");
    faulty.get_opts(&name(1), GetOptions::default()).await.expect_err("down");
    std::fs::remove_file(dir.path().join("DOWN")).expect("removed");
    faulty.get_opts(&name(1), GetOptions::default()).await.expect("up");
}
