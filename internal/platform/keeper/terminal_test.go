package keeper_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

import ()

// numbered checks that the log has the lines "WORD 0" to "WORD n-1" of the stream, once
// each and in order.
func numbered(t *testing.T, lines []string, stream, word string, n int) {
	t.Helper()
	next := 0
	for _, l := range lines {
		text, ok := strings.CutPrefix(l, stream+" F ")
		if !ok {
			continue
		}
		if want := fmt.Sprintf("%s %d", word, next); strings.TrimSuffix(text, "\r") != want {
			t.Fatalf("%s: %q, want %q", stream, text, want)
		}
		next++
	}
	if next != n {
		t.Errorf("%s: %d lines of %d", stream, next, n)
	}
}

// A terminal has nothing to be opened again by: the client holds its master. The keeper
// is killed again and again under a container that writes to it.
func TestTerminalKilled(t *testing.T) {
	r := newRig(t)
	const n = 6000
	s := r.sh("a", fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo line $i; i=$((i+1)); done; read x; echo got $x; exit 6", n))
	s.OCI.Process.Terminal = true
	r.run(s)
	if err := r.c.Resize(r.ctx, "a", 100, 40); err != nil {
		t.Error(err)
	}
	kills := 0
	for ; kills < 40; kills++ {
		time.Sleep(time.Duration(3+kills%13) * time.Millisecond) // another instant each time
		r.kill()
		r.spawn()
	}
	w, err := r.c.StdinWriter(r.ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	size, err := unix.IoctlGetWinsize(int(w.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col != 100 || size.Row != 40 {
		t.Errorf("size %+v, %v", size, err)
	}
	fmt.Fprintln(w, "it")
	w.Close()
	if x := r.wait("a"); !r.ended(x, 6) {
		t.Errorf("exit %+v\n%s", x, r.keeperLog())
	}
	lines := r.log("a")
	if len(lines) < 2 || lines[len(lines)-1] != "stdout F got it\r" {
		t.Fatalf("%d lines, the last %q", len(lines), lines[max(0, len(lines)-3):])
	}
	numbered(t, lines[:len(lines)-2], "stdout", "line", n) // then the echo of the input
}

// A container that closes its terminal and opens it again goes on being read.
func TestTerminalOpenedAgain(t *testing.T) {
	r := newRig(t)
	s := r.sh("a", "tty=$(readlink /proc/self/fd/0); exec <&- >&- 2>&-; /bin/busybox sleep 0.2; echo again >$tty; exit 2")
	os.Symlink("busybox", r.root+"/bin/readlink")
	s.OCI.Process.Terminal = true
	r.run(s)
	if x := r.wait("a"); x.Code != 2 {
		t.Errorf("exit %+v", x)
	}
	if got := strings.Join(r.log("a"), "|"); got != "stdout F again\r" {
		t.Errorf("log: %s", got)
	}
}

// Without anybody who holds it a terminal ends with its keeper, as a session does that
// hangs up; the container is told by SIGHUP, and its end is known as far as can be.
func TestTerminalUnheld(t *testing.T) {
	r := newRig(t)
	s := r.sh("a", "while read x; do echo $x; done; exit 1")
	s.OCI.Process.Terminal = true
	r.run(s)
	r.kill()
	r.held.Close()
	r.spawn()
	if x := r.wait("a"); x.Known && x.Signal != int(unix.SIGHUP) && x.Code != 1 {
		t.Errorf("exit %+v", x)
	}
}
