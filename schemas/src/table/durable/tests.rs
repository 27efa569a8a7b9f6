use super::*;

fn store(dir: &path::Path) -> (DurableStore, Path) {
    let store = DurableStore::new(Arc::new(LocalFileSystem::new()), dir.to_owned());
    (store, Path::from_filesystem_path(dir).expect("a path"))
}

fn create() -> PutOptions {
    PutOptions { mode: PutMode::Create, ..PutOptions::default() }
}

/// The paths below `dir` that were synced after so many others, relative to it. Those of one call in any order.
fn synced(dir: &path::Path, after: usize) -> Vec<String> {
    let relative = |path: &PathBuf| path.strip_prefix(dir).expect("below").to_string_lossy().into_owned();
    let mut paths: Vec<String> = journal::below(dir).iter().skip(after).map(relative).collect();
    paths.sort();
    paths
}

fn directory() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().canonicalize().expect("it is there");
    (dir, path)
}

#[tokio::test]
async fn a_file_its_name_and_the_directories_made_for_it_are_synced_once_written() {
    let (_dir, dir) = directory();
    let (store, root) = store(&dir);
    let file = |name: &str| Path::parse(format!("{root}/{name}")).expect("a path");
    store.put_opts(&file("a=x y/b/1"), "one".into(), create()).await.expect("written");
    assert_eq!(synced(&dir, 0), ["", "a=x y", "a=x y/b", "a=x y/b/1"]);
    store.put(&file("a=x y/b/2"), "two".into()).await.expect("written");
    assert_eq!(synced(&dir, 4), ["a=x y/b", "a=x y/b/2"], "the directories are known");
    store.copy(&file("a=x y/b/2"), &file("a=x y/3")).await.expect("copied");
    store.rename(&file("a=x y/b/2"), &file("4")).await.expect("moved");
    assert_eq!(synced(&dir, 6), ["", "4", "a=x y", "a=x y/3"]);
}

#[tokio::test]
async fn an_upload_in_parts_is_synced_when_it_is_complete() {
    let (_dir, dir) = directory();
    let (store, root) = store(&dir);
    let mut upload = store.put_multipart(&root.clone().join("p").join("1")).await.expect("begun");
    upload.put_part("some".into()).await.expect("written");
    assert_eq!(synced(&dir, 0), [""; 0]);
    upload.complete().await.expect("complete");
    assert_eq!(synced(&dir, 0), ["", "p", "p/1"]);
}

#[tokio::test]
async fn what_cannot_be_made_durable_is_not_there() {
    let (_dir, dir) = directory();
    let (store, root) = store(&dir);
    let commit = root.clone().join("1");
    std::fs::write(dir.join("broken"), "").expect("written");
    let error = store.put_opts(&commit, "ours".into(), create()).await.expect_err("a broken disk");
    assert!(error.to_string().contains("cannot be made durable"), "{error}");
    assert!(matches!(error, Error::Generic { .. }), "it may be tried again");
    assert!(matches!(store.head(&commit).await, Err(Error::NotFound { .. })));
    std::fs::remove_file(dir.join("broken")).expect("removed");
    store.put_opts(&commit, "ours".into(), create()).await.expect("written");
    let before = journal::below(&dir).len();
    let there = store.put_opts(&commit, "theirs".into(), create()).await;
    assert!(matches!(there, Err(Error::AlreadyExists { .. })), "{there:?}");
    assert_eq!(synced(&dir, before), ["", "1"], "whoever is told that it is there relies on it");
}
