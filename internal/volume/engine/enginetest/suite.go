// Package enginetest is the suite that every engine.Engine must pass.
package enginetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/volume/engine"
	"golang.org/x/sys/unix"
)

const mib = 1 << 20

var (
	whileUsed   = engine.Use{SectorBytes: 4096}
	untilDetach = engine.Use{SectorBytes: 4096, Stay: true}
)

// Run tests the engine that open opens. Called again, open must open the same engine
// anew, as a process after the first would. Whoever calls Run tears it down.
func Run(t *testing.T, open func(t *testing.T) engine.Engine) {
	s := &suite{open: open}
	for _, tt := range []struct {
		name string
		run  func(*testing.T, *suite)
	}{
		{"create and delete", testCreateDelete},
		{"bad requests", testBad},
		{"devices", testDevices},
		{"lifetimes", testLifetimes},
		{"sectors", testSectors},
		{"expand", testExpand},
		{"replace", testReplace},
		{"many at once", testConcurrent},
		{"reopen", testReopen},
		{"space", testSpace},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s.Engine = open(t)
			defer s.Close()
			tt.run(t, s)
			if ids, err := s.List(context.Background()); err != nil || len(ids) != 0 {
				t.Errorf("volumes left: %v, %v", ids, err)
			}
			if a, err := s.Attached(context.Background()); err != nil || len(a) != 0 {
				t.Errorf("devices left: %v, %v", a, err)
			}
		})
	}
}

type suite struct {
	engine.Engine
	open func(t *testing.T) engine.Engine
}

// make makes a volume and removes it at the end of the test's body.
func (s *suite) make(t *testing.T, size int64) (id engine.ID, remove func()) {
	t.Helper()
	ctx := context.Background()
	id = engine.ID(uuid.NewString())
	if err := s.Create(ctx, id, size); err != nil {
		t.Fatal(err)
	}
	return id, func() {
		t.Helper()
		short, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if err := errors.Join(s.Detach(short, id), s.Delete(ctx, id)); err != nil {
			t.Error(err)
		}
	}
}

func want(t *testing.T, what string, err error, k *errs.Kind) {
	t.Helper()
	if k == nil && err != nil || k != nil && !errors.Is(err, k) {
		t.Errorf("%s: %v, want %v", what, err, k)
	}
}

func testCreateDelete(t *testing.T, s *suite) {
	ctx := context.Background()
	id, _ := s.make(t, 8*mib)
	want(t, "create again", s.Create(ctx, id, 8*mib), errs.AlreadyExists)
	want(t, "create again with another size", s.Create(ctx, id, 16*mib), errs.AlreadyExists)
	st, err := s.Stat(ctx, id)
	if err != nil || st.SizeBytes != 8*mib || st.UsedBytes > mib {
		t.Errorf("Stat of a new volume: %+v, %v", st, err)
	}
	if ids, err := s.List(ctx); err != nil || !slices.Equal(ids, []engine.ID{id}) {
		t.Errorf("List: %v, %v", ids, err)
	}
	want(t, "delete", s.Delete(ctx, id), nil)
	want(t, "delete again", s.Delete(ctx, id), nil)
	_, err = s.Stat(ctx, id)
	want(t, "stat of a deleted one", err, errs.NotFound)
	want(t, "create with the name of a deleted one", s.Create(ctx, id, mib), nil)
	want(t, "delete", s.Delete(ctx, id), nil)
}

func testBad(t *testing.T, s *suite) {
	ctx := context.Background()
	for _, id := range []engine.ID{"", "..", "../x", "a/b", "x", "00000000-0000-0000-0000-00000000000G", engine.ID("{" + uuid.NewString() + "}"), "ABCDEF00-0000-4000-8000-000000000000"} {
		want(t, "create "+string(id), s.Create(ctx, id, mib), errs.Invalid)
		want(t, "delete "+string(id), s.Delete(ctx, id), errs.Invalid)
		_, err := s.Attach(ctx, id, whileUsed)
		want(t, "attach "+string(id), err, errs.Invalid)
	}
	id := engine.ID(uuid.NewString())
	for _, size := range []int64{-1, 0, 1, mib + 1} {
		want(t, "create with a bad size", s.Create(ctx, id, size), errs.Invalid)
	}
	_, err := s.Attach(ctx, id, whileUsed)
	want(t, "attach a missing one", err, errs.NotFound)
	want(t, "detach a missing one", s.Detach(ctx, id), nil)
	want(t, "expand a missing one", s.Expand(ctx, id, mib), errs.NotFound)
	want(t, "replace a missing one", s.Replace(ctx, id, func(string) error { return nil }), errs.NotFound)
}

func deviceSize(t *testing.T, path string) int64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func writeAt(t *testing.T, path string, b []byte, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

func wantAt(t *testing.T, path string, b []byte, off int64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, len(b))
	if _, err := f.ReadAt(got, off); err != nil || !bytes.Equal(got, b) {
		t.Errorf("%s at %d: %.20q, %v; want %.20q", path, off, got, err, b)
	}
}

func testDevices(t *testing.T, s *suite) {
	ctx := context.Background()
	id, remove := s.make(t, 8*mib)
	d, err := s.Attach(ctx, id, whileUsed)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(d.Path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		t.Errorf("%s is not a block device: %v", d.Path, err)
	}
	if n := deviceSize(t, d.Path); n != 8*mib {
		t.Errorf("the device has %d bytes", n)
	}
	wantAt(t, d.Path, make([]byte, 8*mib), 0)
	writeAt(t, d.Path, []byte("data"), 5*mib+7)
	again, err := s.Attach(ctx, id, whileUsed)
	if err != nil || again.Path != d.Path {
		t.Errorf("attached again: %+v, %v", again, err)
	}
	if a, err := s.Attached(ctx); err != nil || len(a) != 1 || a[id] != d.Path {
		t.Errorf("Attached: %v, %v", a, err)
	}
	want(t, "delete while attached", s.Delete(ctx, id), errs.InUse)
	want(t, "replace while attached", s.Replace(ctx, id, func(string) error { return nil }), errs.InUse)
	if err := errors.Join(d.Close(), again.Close(), again.Close(), s.Detach(ctx, id), s.Detach(ctx, id)); err != nil {
		t.Error(err)
	}
	if st, err := s.Stat(ctx, id); err != nil || st.UsedBytes == 0 || st.UsedBytes > 2*mib {
		t.Errorf("Stat after writing: %+v, %v", st, err)
	}
	d, err = s.Attach(ctx, id, whileUsed)
	if err != nil {
		t.Fatal(err)
	}
	wantAt(t, d.Path, []byte("data"), 5*mib+7)

	// Discarded blocks are given back and read as zeros.
	f, err := os.OpenFile(d.Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	r := [2]uint64{0, 8 * mib}
	if err := blkDiscard(f, &r); err != nil {
		t.Errorf("discard: %v", err)
	}
	f.Close()
	wantAt(t, d.Path, make([]byte, 4), 5*mib+7)
	d.Close()
	if st, err := s.Stat(ctx, id); err != nil || st.UsedBytes > mib/2 {
		t.Errorf("Stat after a discard: %+v, %v", st, err)
	}
	remove()
}

func testLifetimes(t *testing.T, s *suite) {
	ctx := context.Background()
	id, remove := s.make(t, 8*mib)
	defer func() { remove() }()
	d, err := s.Attach(ctx, id, whileUsed)
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	eventually(t, "a device goes when it is closed", func() bool { a, _ := s.Attached(ctx); return len(a) == 0 })

	if d, err = s.Attach(ctx, id, untilDetach); err != nil {
		t.Fatal(err)
	}
	d.Close()
	if a, err := s.Attached(ctx); err != nil || a[id] == "" {
		t.Errorf("a device that was to stay is gone: %v, %v", a, err)
	}
	// Somebody has it open: Detach waits, gives up with the context, and the device goes with the last user.
	f, err := os.Open(d.Path)
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	want(t, "detach an open device", s.Detach(short, id), errs.InUse)
	f.Close()
	eventually(t, "a detached device goes with its last user", func() bool { a, _ := s.Attached(ctx); return len(a) == 0 })
}

// A device has the sectors that were asked for, whatever happened to the volume.
func testSectors(t *testing.T, s *suite) {
	ctx := context.Background()
	for _, size := range []uint32{512, 4096} {
		id, remove := s.make(t, 8*mib)
		for range 2 {
			d, err := s.Attach(ctx, id, engine.Use{SectorBytes: size})
			if err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(d.Path)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET); err != nil || uint32(got) != size {
				t.Errorf("sectors of %d bytes, %v; want %d", got, err, size)
			}
			f.Close()
			if err := errors.Join(d.Close(), s.Detach(ctx, id), s.Replace(ctx, id, func(string) error { return nil })); err != nil {
				t.Fatal(err)
			}
		}
		remove()
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("not within 5 s: %s", what)
			return
		}
	}
}

func testExpand(t *testing.T, s *suite) {
	ctx := context.Background()
	id, remove := s.make(t, 8*mib)
	defer func() { remove() }()
	want(t, "expand", s.Expand(ctx, id, 16*mib), nil)
	want(t, "expand to the same", s.Expand(ctx, id, 16*mib), nil)
	want(t, "shrink", s.Expand(ctx, id, 8*mib), errs.Invalid)
	want(t, "odd size", s.Expand(ctx, id, 16*mib+1), errs.Invalid)
	d, err := s.Attach(ctx, id, whileUsed)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if n := deviceSize(t, d.Path); n != 16*mib {
		t.Errorf("the device has %d bytes", n)
	}
	writeAt(t, d.Path, []byte("kept"), 3*mib)
	want(t, "expand an attached one", s.Expand(ctx, id, 32*mib), nil)
	if n := deviceSize(t, d.Path); n != 32*mib {
		t.Errorf("the device has %d bytes", n)
	}
	wantAt(t, d.Path, []byte("kept"), 3*mib)
	wantAt(t, d.Path, make([]byte, mib), 31*mib)
	d.Close()
}

func testReplace(t *testing.T, s *suite) {
	ctx := context.Background()
	id, remove := s.make(t, 8*mib)
	defer func() { remove() }()
	set := func(text string, fail error) error {
		return s.Replace(ctx, id, func(path string) error {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte(text), mib); err != nil {
				return err
			}
			return fail
		})
	}
	is := func(text string) {
		t.Helper()
		d, err := s.Attach(ctx, id, whileUsed)
		if err != nil {
			t.Fatal(err)
		}
		wantAt(t, d.Path, []byte(text), mib)
		if err := errors.Join(d.Close(), s.Detach(ctx, id)); err != nil {
			t.Fatal(err)
		}
	}
	want(t, "replace", set("first", nil), nil)
	is("first")
	want(t, "replace that fails", set("other", errs.New(errs.Corrupt, "no")), errs.Corrupt)
	is("first")
	want(t, "replace after a failure", set("again", nil), nil)
	is("again")
}

func testConcurrent(t *testing.T, s *suite) {
	ctx := context.Background()
	var wg sync.WaitGroup
	shared, remove := s.make(t, 8*mib)
	paths := make([]string, 8)
	for i := range paths {
		wg.Go(func() {
			d, err := s.Attach(ctx, shared, untilDetach)
			if err != nil {
				t.Error(err)
				return
			}
			paths[i] = d.Path
			d.Close()
		})
		wg.Go(func() {
			id := engine.ID(uuid.NewString())
			if err := s.Create(ctx, id, 8*mib); err != nil {
				t.Error(err)
				return
			}
			d, err := s.Attach(ctx, id, whileUsed)
			if err != nil {
				t.Error(err)
				return
			}
			writeAt(t, d.Path, []byte(id), mib)
			wantAt(t, d.Path, []byte(id), mib)
			if err := errors.Join(s.Expand(ctx, id, 16*mib), d.Close(), s.Detach(ctx, id), s.Delete(ctx, id)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(slices.Compact(slices.Sorted(slices.Values(paths)))) != 1 {
		t.Errorf("one volume has several devices: %v", paths)
	}
	remove()
}

func testReopen(t *testing.T, s *suite) {
	ctx := context.Background()
	id, remove := s.make(t, 8*mib)
	d, err := s.Attach(ctx, id, untilDetach)
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	writeAt(t, d.Path, []byte("x"), 0)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s.Engine = s.open(t)
	if a, err := s.Attached(ctx); err != nil || a[id] != d.Path {
		t.Errorf("attached after reopening: %v, %v; want %s", a, err, d.Path)
	}
	again, err := s.Attach(ctx, id, untilDetach)
	if err != nil || again.Path != d.Path {
		t.Fatalf("attached again after reopening: %+v, %v", again, err)
	}
	again.Close()
	remove()
}

func testSpace(t *testing.T, s *suite) {
	ctx := context.Background()
	before, err := s.Space(ctx)
	if err != nil || before.UsedBytes != 0 || before.FreeBytes <= 64*mib || before.CapacityBytes < before.FreeBytes {
		t.Fatalf("Space: %+v, %v", before, err)
	}
	id, remove := s.make(t, 64*mib)
	if now, err := s.Space(ctx); err != nil || now.UsedBytes > mib {
		t.Errorf("a volume that was never written takes space: %+v, %v", now, err)
	}
	d, err := s.Attach(ctx, id, whileUsed)
	if err != nil {
		t.Fatal(err)
	}
	writeAt(t, d.Path, bytes.Repeat([]byte{1}, 32*mib), 0)
	d.Close()
	if now, err := s.Space(ctx); err != nil || now.UsedBytes < 32*mib || now.FreeBytes > before.FreeBytes-30*mib {
		t.Errorf("after writing 32 MiB: %+v, %v; before: %+v", now, err, before)
	}
	remove()
}

// blkDiscard discards a range of bytes {start, length} of a block device.
func blkDiscard(f *os.File, r *[2]uint64) error {
	return ioctl(f, unix.BLKDISCARD, r)
}
