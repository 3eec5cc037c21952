package image

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/orlop-io/orlop/internal/base/errs"
)

func itoa(n int) string { return strconv.Itoa(n) }

// buildStatic builds a small program.
func buildStatic(t testing.TB, dir string) string {
	t.Helper()
	src := filepath.Join(dir, "main.go")
	if err := os.WriteFile(src, []byte("package main\nfunc main() { println(\"hello\") }\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "hello")
	cmd := exec.Command("go", "build", "-o", bin, src)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return bin
}

func TestPackExecutable(t *testing.T) {
	s := open(t, t.TempDir())
	bin := buildStatic(t, t.TempDir())
	img, err := s.Pack(t.Context(), PackOptions{Source: bin, Ref: "localhost/hello:1", Ports: []string{"8080"}, Env: []string{"A=b"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := img.Config.Entrypoint; len(got) != 1 || got[0] != "/bin/hello" {
		t.Errorf("entrypoint %q", got)
	}
	if _, ok := img.Config.ExposedPorts["8080/tcp"]; !ok {
		t.Errorf("ports %v", img.Config.ExposedPorts)
	}
	root := mountImage(t, s, "localhost/hello:1")
	out, err := exec.Command(root + "/bin/hello").CombinedOutput()
	if err != nil || string(out) != "hello\n" {
		t.Errorf("it does not run: %v, %s", err, out)
	}
	if st, err := os.Stat(root + "/tmp"); err != nil || st.Mode().Perm() != 0o777 || st.Mode()&os.ModeSticky == 0 {
		t.Errorf("/tmp: %v, %v", st.Mode(), err)
	}
}

// TestPackDeterministic: what the files are, not when, by whom and where they were
// made, decides about the digest.
func TestPackDeterministic(t *testing.T) {
	var ids []string
	for i := range 2 {
		s := open(t, t.TempDir())
		dir := t.TempDir()
		names := []string{"b/two", "a/one", "c"}
		if i == 1 {
			names = []string{"c", "a/one", "b/two"}
		}
		for _, n := range names {
			p := filepath.Join(dir, n)
			if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(p, []byte(n), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(p, time.Now(), time.Now().Add(-time.Duration(i)*time.Hour)); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(p, i, i); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink("c", filepath.Join(dir, "link")); err != nil {
			t.Fatal(err)
		}
		if err := os.Link(filepath.Join(dir, "c"), filepath.Join(dir, "d")); err != nil {
			t.Fatal(err)
		}
		img, err := s.Pack(t.Context(), PackOptions{Source: dir, Ref: "x", Entrypoint: []string{"/c"}})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, img.ID.String()+" "+img.Manifest.String())
		root := mountImage(t, s, "x")
		if b, err := os.ReadFile(root + "/a/one"); err != nil || string(b) != "a/one" {
			t.Errorf("a/one: %q, %v", b, err)
		}
	}
	if ids[0] != ids[1] {
		t.Errorf("different digests:\n%s\n%s", ids[0], ids[1])
	}
}

func TestPackErrors(t *testing.T) {
	s := open(t, t.TempDir())
	dir := t.TempDir()
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		o    PackOptions
		kind error
	}{
		"missing":        {PackOptions{Source: "/no/such", Ref: "x"}, errs.NotFound},
		"script":         {PackOptions{Source: script, Ref: "x"}, errs.Invalid},
		"dynamic":        {PackOptions{Source: "/bin/ls", Ref: "x"}, errs.Invalid},
		"bad name":       {PackOptions{Source: dir, Ref: "UPPER/x"}, errs.Invalid},
		"no entrypoint":  {PackOptions{Source: dir, Ref: "x"}, errs.Invalid},
		"bad env":        {PackOptions{Source: dir, Ref: "x", Entrypoint: []string{"/x"}, Env: []string{"A"}}, errs.Invalid},
		"bad port":       {PackOptions{Source: dir, Ref: "x", Entrypoint: []string{"/x"}, Ports: []string{"0"}}, errs.Invalid},
		"relative dir":   {PackOptions{Source: dir, Ref: "x", Entrypoint: []string{"/x"}, WorkDir: "a"}, errs.Invalid},
		"device":         {PackOptions{Source: "/dev/null", Ref: "x"}, errs.Invalid},
		"digest in name": {PackOptions{Source: dir, Ref: "x@sha256:" + string(make([]byte, 0)), Entrypoint: []string{"/x"}}, errs.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.Pack(t.Context(), c.o)
			if !errors.Is(err, c.kind) {
				t.Errorf("%v, want kind %v", err, c.kind)
			}
			t.Log(err)
		})
	}
	checkEmpty(t, s)
}
