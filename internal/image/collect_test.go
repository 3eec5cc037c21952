package image

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/orlop-io/orlop/internal/base/config"
	"github.com/orlop-io/orlop/internal/image/imagetest"
	"golang.org/x/sys/unix"
)

// smallDisk mounts a filesystem of that size.
func smallDisk(t testing.TB, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755,"+size); err != nil {
		t.Fatalf("mount a tmpfs (needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// incompressible is an image with one file of that size, which takes twice that:
// the blob and the unpacked layer.
func incompressible(t testing.TB, size int) *imagetest.Layout {
	t.Helper()
	b := make([]byte, size)
	rand.Read(b)
	return build(t, layerOf(imagetest.File("f", string(b))))
}

func never(digest.Digest) bool { return false }

// TestCollect fills a small filesystem with images until the high mark is passed.
func TestCollect(t *testing.T) {
	dir := smallDisk(t, "size=64m")
	var reg imagetest.Registry
	host := reg.Serve(t)
	s := open(t, dir, func(c *config.Image) {
		c.GC = config.ImageGC{Enabled: true, HighPercent: 80, LowPercent: 60, MinAge: time.Minute, Interval: time.Second}
	})
	id := make(map[string]digest.Digest)
	// Seven images of 7 MiB fill 49 of 64, and the state file some more; the eighth, made here, is 4.
	for i := range 7 {
		name := fmt.Sprintf("app%d", i)
		reg.Add(name, incompressible(t, 7<<19))
		img, err := s.Pull(t.Context(), host+"/"+name+":1", PullOptions{})
		if err != nil {
			t.Fatal(err)
		}
		id[name] = img.ID
	}
	made := t.TempDir()
	if err := os.WriteFile(made+"/f", make([]byte, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	own, err := s.Pack(t.Context(), PackOptions{Source: made, Ref: "localhost/own:1", Entrypoint: []string{"/f"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Pin(t.Context(), id["app0"].String(), true); err != nil {
		t.Fatal(err)
	}
	release, err := s.Hold(id["app1"])
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	used := func(d digest.Digest) bool { return d == id["app2"] }

	// All were used just now.
	c, err := s.Collect(t.Context(), used)
	if err != nil {
		t.Fatal(err)
	}
	if c.BeforePercent < 80 {
		t.Fatalf("the filesystem is only %d%% full", c.BeforePercent)
	}
	if len(c.Images) > 0 || !c.Short {
		t.Fatalf("younger than minAge, and gone: %+v", c)
	}
	// app4 was used after app3, 5 and 6 were; what is used now says so by itself.
	s.mu.Lock()
	for i, name := range []string{"app0", "app1", "app3", "app5", "app6", "app4"} {
		s.st.used[id[name]] = time.Now().Add(-time.Hour + time.Duration(i)*time.Minute)
	}
	s.st.used[own.ID] = time.Now().Add(-2 * time.Hour)
	s.st.used[id["app2"]] = time.Now().Add(-3 * time.Hour)
	s.st.usedChanged = true
	s.mu.Unlock()
	if c, err = s.Collect(t.Context(), used); err != nil {
		t.Fatal(err)
	}
	want := []string{host + "/app3:1", host + "/app5:1", host + "/app6:1", host + "/app4:1"}
	if n := len(c.Names); n == 0 || n == len(want) || !slices.Equal(c.Names, want[:n]) {
		t.Errorf("removed %q, want the first of %q", c.Names, want)
	}
	if c.Short || c.AfterPercent > 60 || c.FreedBytes < 14<<20 {
		t.Errorf("%+v", c)
	}
	if st := s.Collected(); st.Images != int64(len(c.Images)) || st.FreedBytes != c.FreedBytes {
		t.Errorf("counted %+v", st)
	}
	if u, err := s.fsUse(); err != nil || u.percent() > 60 {
		t.Errorf("the filesystem is %d%% full, %v", u.percent(), err)
	}
	for _, left := range []string{"app0", "app1", "app2", "app4"} {
		if _, err := s.Resolve(t.Context(), id[left].String()); err != nil {
			t.Error(err)
		}
	}
	// Below the high mark nothing happens.
	if c, err = s.Collect(t.Context(), never); err != nil || len(c.Images) > 0 {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestCollectInodes: a filesystem can be full of small files.
func TestCollectInodes(t *testing.T) {
	dir := smallDisk(t, "size=64m,nr_inodes=300")
	var reg imagetest.Registry
	host := reg.Serve(t)
	s := open(t, dir, func(c *config.Image) {
		c.GC = config.ImageGC{Enabled: true, HighPercent: 70, LowPercent: 50, Interval: time.Second}
	})
	var oldest digest.Digest
	for i := range 2 {
		var files []imagetest.Entry
		for n := range 100 {
			files = append(files, imagetest.File(fmt.Sprintf("f%d-%d", i, n), ""))
		}
		name := fmt.Sprintf("app%d", i)
		reg.Add(name, build(t, layerOf(files...)))
		img, err := s.Pull(t.Context(), host+"/"+name+":1", PullOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			oldest = img.ID
		}
	}
	c, err := s.Collect(t.Context(), never)
	if err != nil || len(c.Images) != 1 || c.Images[0] != oldest || c.Short {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestCollectShort: where nothing may go, it says so, and nothing goes.
func TestCollectShort(t *testing.T) {
	dir := smallDisk(t, "size=32m")
	var reg imagetest.Registry
	reg.Add("app", incompressible(t, 1<<20))
	host := reg.Serve(t)
	s := open(t, dir, func(c *config.Image) {
		c.GC = config.ImageGC{Enabled: true, HighPercent: 60, LowPercent: 50, Interval: 10 * time.Millisecond}
	})
	img, err := s.Pull(t.Context(), host+"/app:1", PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/other", make([]byte, 24<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	// Over and over, it is told once.
	told := make(chan Collection, 100)
	looks := 0
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s.CollectAlways(ctx, func() func(digest.Digest) bool {
		if looks++; looks > 5 {
			cancel()
		}
		return func(d digest.Digest) bool { return d == img.ID }
	}, func(c Collection) { told <- c })
	if len(told) != 1 {
		t.Fatalf("told %d times", len(told))
	}
	if c := <-told; !c.Short || len(c.Images) > 0 {
		t.Errorf("%+v", c)
	}
}

// TestUsed: when images were used outlives the daemon.
func TestUsed(t *testing.T) {
	dir := t.TempDir()
	name, _ := serve(t, build(t, layerOf(imagetest.File("a", "1"))))
	long := time.Now().Add(-48 * time.Hour).Round(0)
	var id digest.Digest
	t.Run("first", func(t *testing.T) {
		s := open(t, dir)
		img, err := s.Pull(t.Context(), name, PullOptions{})
		if err != nil {
			t.Fatal(err)
		}
		id = img.ID
		s.mu.Lock()
		s.st.used[id] = long
		s.mu.Unlock()
	})
	t.Run("second", func(t *testing.T) {
		s := open(t, dir)
		if got := s.st.used[id]; !got.Equal(long) {
			t.Errorf("used %v, not %v", got, long)
		}
		if _, err := s.Use(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		if got := s.st.used[id]; time.Since(got) > time.Minute {
			t.Errorf("used %v", got)
		}
		if _, err := s.Remove(t.Context(), id.String(), nil); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("third", func(t *testing.T) {
		s := open(t, dir)
		all, err := s.db.used.All()
		if err != nil || len(all) > 0 || strings.Contains(fmt.Sprint(s.st.used), id.String()) {
			t.Errorf("records of what is gone: %v, %v", all, err)
		}
	})
}
