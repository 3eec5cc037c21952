package image

import (
	"context"
	"errors"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/image/imagetest"
)

// TestConcurrentPulls: pulls of the same layers at the same time fetch each once;
// one that is cancelled does not take the others with it.
func TestConcurrentPulls(t *testing.T) {
	base := layerOf(imagetest.Dir("a"), imagetest.File("a/f", strings.Repeat("base", 100000)))
	one, two := build(t, base, layerOf(imagetest.File("b", "1"))), build(t, base, layerOf(imagetest.File("b", "2")))
	shared := one.Image.Layers[0].Digest
	started, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	reg := imagetest.Registry{Fault: func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, shared.String()) {
			once.Do(func() { close(started) })
			<-goOn
		}
		return false
	}}
	reg.Add("one", one)
	reg.Add("two", two)
	host := reg.Serve(t)
	s := open(t, t.TempDir())

	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := s.Pull(ctx, host+"/one:1", PullOptions{})
		first <- err
	}()
	<-started
	var wg sync.WaitGroup
	for _, n := range []string{"one", "two", "one", "two"} {
		wg.Go(func() {
			if _, err := s.Pull(t.Context(), host+"/"+n+":1", PullOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	// All wait for the same download, which the first one began.
	waitFor(t, func() bool {
		s.flights.mu.Lock()
		defer s.flights.mu.Unlock()
		for _, f := range s.flights.by {
			if f.waiters == 5 {
				return true
			}
		}
		return false
	})
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	close(goOn)
	wg.Wait()
	asked := make(map[string]int)
	for _, r := range reg.Requests() {
		if strings.Contains(r, "/blobs/") {
			asked[r[strings.LastIndex(r, "/"):]]++
		}
	}
	if n := asked["/"+shared.String()]; n != 1 {
		t.Errorf("the shared layer was fetched %d times", n)
	}
	imgs, err := s.List(t.Context())
	if err != nil || len(imgs) != 2 {
		t.Errorf("%d images, %v", len(imgs), err)
	}
	checkConsistent(t, "after", s)
}

func waitFor(t *testing.T, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain")
		}
	}
}

// TestCancelledPull: the last one who wants it gives up, and nothing is left.
func TestCancelledPull(t *testing.T) {
	l := build(t, layerOf(imagetest.File("a", "1")), layerOf(imagetest.File("b", "2")))
	started := make(chan struct{}, 10)
	reg := imagetest.Registry{Fault: func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, l.Image.Layers[1].Digest.String()) {
			started <- struct{}{}
			<-r.Context().Done()
		}
		return false
	}}
	reg.Add("app", l)
	name := reg.Serve(t) + "/app:1"
	s := open(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := s.Pull(ctx, name, PullOptions{})
		done <- err
	}()
	<-started
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) || errs.KindOf(err) != errs.Canceled {
		t.Errorf("error %v", err)
	}
	checkEmpty(t, s)
}

// TestShared: images share layers by DiffID whatever their compression; removing
// one leaves the other whole; the last takes everything with it.
func TestShared(t *testing.T) {
	entries := []imagetest.Entry{imagetest.Dir("a"), imagetest.File("a/f", "x")}
	gz := build(t, imagetest.Layer{Entries: entries})
	zs := build(t, imagetest.Layer{Entries: entries, Compression: "zstd"}, layerOf(imagetest.File("b", "y")))
	var reg imagetest.Registry
	reg.Add("gz", gz)
	reg.Add("zs", zs)
	host := reg.Serve(t)
	s := open(t, t.TempDir())
	a, err := s.Pull(t.Context(), host+"/gz:1", PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Pull(t.Context(), host+"/zs:1", PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range reg.Requests() {
		if strings.Contains(r, zs.Image.Layers[0].Digest.String()) {
			t.Error("a layer that was here was fetched")
		}
	}
	da, _ := s.LayerDirs(t.Context(), a.ID)
	db, _ := s.LayerDirs(t.Context(), b.ID)
	if len(da) != 1 || len(db) != 2 || da[0] != db[1] {
		t.Errorf("directories %q, %q", da, db)
	}
	// Its own manifest names a blob that is not here; export makes do.
	dir := t.TempDir() + "/x"
	if err := s.ExportDir(t.Context(), []string{host + "/zs:1"}, dir); err != nil {
		t.Error(err)
	} else if got, err := open(t, t.TempDir()).ImportPath(t.Context(), dir, ImportOptions{}); err != nil || got[0].ID != b.ID {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := s.Remove(t.Context(), host+"/gz:1", nil); err != nil {
		t.Fatal(err)
	}
	checkConsistent(t, "one removed", s)
	root := mountImage(t, s, host+"/zs:1")
	_ = root
	if err := s.ExportDir(t.Context(), []string{host + "/zs:1"}, t.TempDir()+"/y"); err != nil {
		t.Errorf("after the other was removed: %v", err)
	}
	if _, err := s.Remove(t.Context(), b.ID.String(), nil); err != nil {
		t.Fatal(err)
	}
	checkEmpty(t, s)
}

// TestRemoveInUse: what is used stays, until it is used no more.
func TestRemoveInUse(t *testing.T) {
	s := open(t, t.TempDir())
	name, _ := serve(t, build(t, layerOf(imagetest.File("a", "x"))))
	img, err := s.Pull(t.Context(), name, PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	inUse := func(id digest.Digest) bool { return id == img.ID }
	if _, err := s.Remove(t.Context(), name, inUse); !errors.Is(err, errs.InUse) {
		t.Errorf("in use: %v", err)
	}
	release, err := s.Hold(img.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Remove(t.Context(), name, nil); !errors.Is(err, errs.InUse) {
		t.Errorf("held: %v", err)
	}
	if p, err := s.Prune(t.Context(), PruneOptions{All: true}); err != nil || len(p.Images) > 0 {
		t.Errorf("pruned %v, %v", p, err)
	}
	release()
	release()
	if err := s.Tag(t.Context(), name, "other:1"); err != nil {
		t.Fatal(err)
	}
	if r, err := s.Remove(t.Context(), name, inUse); err != nil || len(r.Images) > 0 { // has another name
		t.Errorf("%+v, %v", r, err)
	}
	if p, err := s.Prune(t.Context(), PruneOptions{All: true, InUse: inUse}); err != nil || len(p.Images) > 0 {
		t.Errorf("pruned %v, %v", p, err)
	}
	if p, err := s.Prune(t.Context(), PruneOptions{}); err != nil || len(p.Images) > 0 {
		t.Errorf("pruned one with a name: %v, %v", p, err)
	}
	if err := s.Pin(t.Context(), "other:1", true); err != nil {
		t.Fatal(err)
	}
	if p, err := s.Prune(t.Context(), PruneOptions{All: true}); err != nil || len(p.Images) > 0 {
		t.Errorf("pruned a pinned one: %v, %v", p, err)
	}
	if err := s.Pin(t.Context(), "other:1", false); err != nil {
		t.Fatal(err)
	}
	if p, err := s.Prune(t.Context(), PruneOptions{All: true}); err != nil || len(p.Images) != 1 || p.FreedBytes == 0 {
		t.Errorf("pruned %+v, %v", p, err)
	}
	checkEmpty(t, s)
	if _, err := s.Resolve(t.Context(), "other:1"); !errors.Is(err, errs.NotFound) {
		t.Errorf("resolve: %v", err)
	}
}

// TestMovedTag: a tag that means another image now leaves the old one without a
// name, for Prune.
func TestMovedTag(t *testing.T) {
	s := open(t, t.TempDir())
	var reg imagetest.Registry
	reg.Add("app", build(t, layerOf(imagetest.File("a", "1"))))
	name := reg.Serve(t) + "/app:1"
	old, err := s.Pull(t.Context(), name, PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	reg.Add("app", build(t, layerOf(imagetest.File("a", "2"))))
	img, err := s.Pull(t.Context(), name, PullOptions{})
	if err != nil || img.ID == old.ID {
		t.Fatalf("%v, %v", img, err)
	}
	if got, err := s.Resolve(t.Context(), old.ID.Encoded()[:12]); err != nil || len(got.Names) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := s.Resolve(t.Context(), old.Digests[0]); err != nil || got.ID != old.ID {
		t.Errorf("by digest: %+v, %v", got, err)
	}
	if p, err := s.Prune(t.Context(), PruneOptions{}); err != nil || len(p.Images) != 1 || p.Images[0] != old.ID {
		t.Errorf("pruned %+v, %v", p, err)
	}
	checkConsistent(t, "pruned", s)
	// By digest only.
	byDigest := strings.TrimSuffix(name, ":1") + "@" + img.Manifest.String()
	if _, err := s.Remove(t.Context(), name, nil); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Pull(t.Context(), byDigest, PullOptions{}); err != nil || len(got.Names) != 0 || got.Digests[0] != byDigest {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestRepair: what has changed on the disk is noticed, not handed out, and fetched
// again by the next pull.
func TestRepair(t *testing.T) {
	dir := t.TempDir()
	l := build(t, layerOf(imagetest.Dir("a"), imagetest.File("a/f", "x")))
	name, _ := serve(t, l)
	s := open(t, dir)
	img, err := s.Pull(t.Context(), name, PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	file := s.blobPath(l.Image.Layers[0].Digest)
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)/2] ^= 1
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.ExportDir(t.Context(), []string{name}, t.TempDir()+"/x"); !errors.Is(err, errs.Corrupt) {
		t.Errorf("export: %v", err)
	}
	s.mu.Lock()
	for _, have := range s.st.layers { // as after a power loss
		have.ready = false
		if err := os.RemoveAll(s.layerDir(have.rec)); err != nil {
			t.Error(err)
		}
	}
	s.mu.Unlock()
	if _, err := s.LayerDirs(t.Context(), img.ID); !errors.Is(err, errs.Corrupt) {
		t.Errorf("layers: %v", err)
	}
	if img, err = s.Pull(t.Context(), name, PullOptions{}); err != nil || !img.Unpacked {
		t.Fatalf("pulled again: %+v, %v", img, err)
	}
	root := mountImage(t, s, name)
	if b, err := os.ReadFile(root + "/a/f"); err != nil || string(b) != "x" {
		t.Errorf("%q, %v", b, err)
	}
	if err := s.ExportDir(t.Context(), []string{name}, t.TempDir()+"/y"); err != nil {
		t.Errorf("export: %v", err)
	}
	checkConsistent(t, "repaired", s)
}

// TestJoinedFails: a pull that waited for another one's download does it itself
// when that one fails, and is told nothing after it has given up.
func TestJoinedFails(t *testing.T) {
	l := build(t, layerOf(imagetest.File("a", "1")))
	layer := l.Image.Layers[0].Digest.String()
	started, goOn := make(chan struct{}), make(chan struct{})
	bad := imagetest.Registry{Fault: func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, layer) {
			return false
		}
		close(started)
		<-goOn
		http.NotFound(w, r)
		return true
	}}
	var good imagetest.Registry
	bad.Add("app", l)
	good.Add("app", l)
	badHost, goodHost := bad.Serve(t), good.Serve(t)
	s := open(t, t.TempDir())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := s.Pull(t.Context(), badHost+"/app:1", PullOptions{})
		first <- err
	}()
	<-started
	go func() {
		_, err := s.Pull(t.Context(), goodHost+"/app:1", PullOptions{})
		second <- err
	}()
	waitFor(t, func() bool {
		s.flights.mu.Lock()
		defer s.flights.mu.Unlock()
		for _, f := range s.flights.by {
			if f.waiters == 2 {
				return true
			}
		}
		return false
	})
	close(goOn)
	if err := <-first; !errors.Is(err, errs.NotFound) {
		t.Errorf("from the bad registry: %v", err)
	}
	if err := <-second; err != nil {
		t.Errorf("from the good one: %v", err)
	}
	checkConsistent(t, "after", s)
}
