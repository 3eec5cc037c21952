package keeper_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/platform/keeper"
)

func TestExecAndAttach(t *testing.T) {
	r := newRig(t)
	s := r.sh("a", "while read x; do echo got $x; done; echo closed")
	s.Stdin, s.StdinOnce = true, true
	r.run(s)
	pr, pw, _ := os.Pipe()
	if err := r.c.Attach(r.ctx, "a", keeper.AttachSpec{Stdout: pw}); err != nil {
		t.Fatal(err)
	}
	pw.Close()
	w, err := r.c.StdinWriter(r.ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(w, "one")
	buf := make([]byte, 100)
	if n, err := pr.Read(buf); err != nil || string(buf[:n]) != "got one\n" {
		t.Errorf("attached: %q, %v", buf[:n], err)
	}

	er, ew, _ := os.Pipe()
	e, err := r.c.Exec(r.ctx, "a", keeper.ExecSpec{Process: &specs.Process{Args: []string{"/bin/sh", "-c", "echo $FOO; kill -9 $$"}, Cwd: "/", Env: []string{"FOO=bar", "PATH=/bin"}}, Stdout: ew})
	if err != nil {
		t.Fatal(err)
	}
	ew.Close()
	n, _ := er.Read(buf)
	x, err := e.Wait(r.ctx)
	if err != nil || x.Code != 137 || string(buf[:n]) != "bar\n" {
		t.Errorf("exec: %+v %v %q", x, err, buf[:n])
	}
	e, err = r.c.Exec(r.ctx, "a", keeper.ExecSpec{Process: &specs.Process{Args: []string{"/bin/sh"}, Cwd: "/", Env: []string{"PATH=/bin"}, Terminal: true}})
	if err != nil || e.Console == nil {
		t.Fatalf("exec with a terminal: %v %+v", err, e)
	}
	if err := e.Resize(132, 43); err != nil {
		t.Error(err)
	}
	os.Symlink("busybox", r.root+"/bin/stty")
	fmt.Fprintln(e.Console, "stty size; exit 5")
	var seen string
	for !strings.Contains(seen, "43 132") {
		n, err := e.Console.Read(buf)
		if err != nil {
			t.Errorf("terminal said %q, then %v", seen, err)
			break
		}
		seen += string(buf[:n])
	}
	if x, err := e.Wait(r.ctx); err != nil || x.Code != 5 {
		t.Errorf("exec with a terminal: %+v %v", x, err)
	}
	e.Console.Close()

	w.Close()
	if err := r.c.CloseStdin(r.ctx, "a"); err != nil {
		t.Error(err)
	}
	if x := r.wait("a"); x.Code != 0 {
		t.Errorf("exit %+v", x)
	}
}
