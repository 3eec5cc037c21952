package keeper_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/keeper"
)

// small mounts a filesystem of that many bytes on a new directory.
func small(t *testing.T, size int) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount(mountName(), dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

const hundredKiB = `i=0; while [ $i -lt 100 ]; do echo 0123456789; head -c 1013 /dev/zero | tr '\0' x; echo; i=$((i+1)); done`

func (r *rig) tools(names ...string) {
	for _, n := range names {
		os.Symlink("busybox", r.root+"/bin/"+n)
	}
}

// A disk that is full holds up nobody, the keeper says so, and goes on when there is
// room again.
func TestLogDiskFull(t *testing.T) {
	disk := small(t, 40<<10)
	r := newRig(t)
	r.tools("head", "tr")
	s := r.sh("a", "read x; "+hundredKiB+"; echo said; read x; echo after; exit 3")
	s.Stdin = true
	s.Log.Path = disk + "/logs/a.log"
	r.run(s)
	w, err := r.c.StdinWriter(r.ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	or, ow, _ := os.Pipe()
	if err := r.c.Attach(r.ctx, "a", keeper.AttachSpec{Stdout: ow}); err != nil {
		t.Fatal(err)
	}
	ow.Close()
	fmt.Fprintln(w)
	buf, seen := make([]byte, 4096), ""
	for !strings.HasSuffix(seen, "said\n") {
		n, err := or.Read(buf)
		if err != nil {
			t.Fatalf("%v; the keeper says: %s", err, r.keeperLog())
		}
		seen = seen[max(0, len(seen)-10):] + string(buf[:n])
	}
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(r.keeperLog(), "the log cannot be written"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the keeper says nothing: %s", r.keeperLog())
		}
	}
	// What stays written is whole lines. (What is shown is shown before it is logged.)
	var raw []byte
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if raw, err = os.ReadFile(s.Log.Path); err == nil && strings.HasSuffix(string(raw), "\n") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the log ends with half a line: %v, %d bytes: %.80q … %q\n%s", err, len(raw), raw, raw[max(0, len(raw)-80):], r.keeperLog())
		}
	}
	if err := os.Truncate(s.Log.Path, 0); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(w)
	if x := r.wait("a"); x.Code != 3 {
		t.Errorf("exit %+v", x)
	}
	raw, _ = os.ReadFile(s.Log.Path)
	if !strings.HasSuffix(string(raw), " stdout F after\n") || raw[0] == 0 {
		t.Errorf("after there was room again: %.200q", raw)
	}
	if !strings.Contains(r.keeperLog(), "the log is written again") || !strings.Contains(r.keeperLog(), "droppedBytes=") {
		t.Errorf("the keeper says: %s", r.keeperLog())
	}
}

// A log that cannot be made holds up nobody either.
func TestLogUnwritable(t *testing.T) {
	r := newRig(t)
	file := filepath.Join(t.TempDir(), "file")
	os.WriteFile(file, nil, 0o600)
	for id, path := range map[string]string{"notdir": file + "/a.log", "dir": t.TempDir(), "device": "/dev/full"} {
		s := r.sh(id, "echo x; exit 5")
		s.Log.Path = path
		r.run(s)
		if x := r.wait(id); x.Code != 5 {
			t.Errorf("%s: exit %+v", id, x)
		}
	}
}

// With the keeper's own tmpfs full, output still reaches the log.
func TestStateDiskFull(t *testing.T) {
	dir := small(t, 256<<10)
	r := newRig(t)
	r.tools("head", "tr")
	r.close()
	r.dir = dir
	r.spawn()
	s := r.sh("a", `read x; `+hundredKiB+`; exit 3`)
	s.Stdin = true
	r.run(s)
	fill, err := os.Create(r.dir + "/fill")
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := fill.Write(make([]byte, 4096)); err != nil {
			break
		}
	}
	fill.Close()
	if _, err := r.c.Run(r.ctx, r.sh("b", "true")); !errors.Is(err, unix.ENOSPC) && (err == nil || !strings.Contains(err.Error(), "no space")) {
		t.Errorf("a container where there is no room for its record: %v", err)
	}
	w, err := r.c.StdinWriter(r.ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(w)
	w.Close()
	if x := r.wait("a"); x.Code != 3 {
		t.Errorf("exit %+v", x)
	}
	var text strings.Builder
	for _, l := range r.log("a") {
		if part, ok := strings.CutPrefix(l, "stdout P "); ok {
			text.WriteString(part)
		} else {
			text.WriteString(strings.TrimPrefix(l, "stdout F ") + "\n")
		}
	}
	if want := strings.Repeat("0123456789\n"+strings.Repeat("x", 1013)+"\n", 100); text.String() != want {
		t.Errorf("%d bytes of %d", text.Len(), len(want))
	}
	os.Remove(r.dir + "/fill")
}

// Somebody else moves, deletes, truncates the log.
func TestLogMoved(t *testing.T) {
	r := newRig(t)
	s := r.sh("a", "while read x; do echo $x; done")
	s.Stdin = true
	r.run(s)
	w, err := r.c.StdinWriter(r.ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	path := s.Log.Path
	say := func(text, in string) {
		t.Helper()
		fmt.Fprintln(w, text)
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			raw, _ := os.ReadFile(in)
			if strings.HasSuffix(string(raw), " stdout F "+text+"\n") {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s is not in %s: %q", text, in, raw)
			}
		}
	}
	say("one", path)
	os.Rename(path, path+".old")
	say("two", path+".old")
	if err := r.c.ReopenLog(r.ctx, "a"); err != nil {
		t.Fatal(err)
	}
	say("three", path)
	os.Remove(path)
	say("four", path)
	os.Truncate(path, 0)
	say("five", path)
	if raw, _ := os.ReadFile(path); raw[0] == 0 {
		t.Error("a hole is left where the log was truncated")
	}
	// Moved away and not told: the next keeper begins a new one, and doubles nothing.
	os.Rename(path, path+".old2")
	r.kill()
	r.spawn()
	say("six", path)
	if raw, _ := os.ReadFile(path); strings.Count(string(raw), "\n") != 1 {
		t.Errorf("after a restart: %q", raw)
	}
}

// Several are attached: one reads, one reads late, one never. The container waits for none.
func TestAttachSlow(t *testing.T) {
	t.Parallel() // it waits more than it works, and names no fault point to the keepers of others
	r := newRig(t)
	r.tools("head", "tr", "seq")
	s := r.sh("a", "read x; seq 300000; read x; exit 4")
	s.Stdin = true
	r.run(s)
	attach := func() *os.File {
		rd, wr, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { rd.Close() })
		if err := r.c.Attach(r.ctx, "a", keeper.AttachSpec{Stdout: wr}); err != nil {
			t.Fatal(err)
		}
		wr.Close()
		return rd
	}
	reads, never, gone := attach(), attach(), attach()
	gone.Close()
	type sum struct{ lines, bytes int }
	done := make(chan sum, 1)
	go func() {
		var s sum
		buf := make([]byte, 1<<10)
		for {
			n, err := reads.Read(buf)
			s.bytes += n
			s.lines += strings.Count(string(buf[:n]), "\n")
			if err != nil {
				done <- s
				return
			}
		}
	}()
	w, err := r.c.StdinWriter(r.ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(w, "\n\n")
	w.Close()
	if x := r.wait("a"); x.Code != 4 {
		t.Errorf("exit %+v", x)
	}
	if n := len(r.log("a")); n != 300000 {
		t.Errorf("the log has %d lines", n)
	}
	got := <-done
	t.Logf("the slow one got %d of 300000 lines before it was dropped", got.lines)
	if got.lines == 0 {
		t.Error("the one who reads got nothing")
	}
	never.SetReadDeadline(time.Now().Add(10 * time.Second))
	rest, err := io.ReadAll(never)
	if err != nil || len(rest) == 0 || len(rest) > 2<<20 {
		t.Errorf("the one who never read was not dropped: %d bytes, %v", len(rest), err)
	}
}

// One who reads as fast as it comes gets all of it, the last bytes included.
func TestAttachWhole(t *testing.T) {
	r := newRig(t)
	r.tools("seq")
	s := r.sh("a", "read x; seq 20000; seq 20000 >&2; printf 'the end'")
	s.Stdin = true
	r.run(s)
	or, ow, _ := os.Pipe()
	er, ew, _ := os.Pipe()
	if err := r.c.Attach(r.ctx, "a", keeper.AttachSpec{Stdout: ow, Stderr: ew}); err != nil {
		t.Fatal(err)
	}
	ow.Close()
	ew.Close()
	errText := make(chan string, 1)
	go func() { b, _ := io.ReadAll(er); errText <- string(b) }()
	w, err := r.c.StdinWriter(r.ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(w)
	w.Close()
	out, err := io.ReadAll(or)
	if err != nil || strings.Count(string(out), "\n") != 20000 || !strings.HasSuffix(string(out), "20000\nthe end") {
		t.Errorf("%d lines, %v", strings.Count(string(out), "\n"), err)
	}
	if e := <-errText; strings.Count(e, "\n") != 20000 || !strings.HasSuffix(e, "\n20000\n") {
		t.Errorf("stderr: %d lines", strings.Count(e, "\n"))
	}
	r.wait("a")
}
