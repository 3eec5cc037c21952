package keeper_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLogFormatAndRotation(t *testing.T) {
	r := newRig(t)
	s := r.sh("long", `head -c 40000 /dev/zero | tr '\0' x; echo; echo end`)
	os.Symlink("busybox", r.root+"/bin/head")
	os.Symlink("busybox", r.root+"/bin/tr")
	r.run(s)
	r.wait("long")
	lines := r.log("long")
	if len(lines) != 4 || !strings.HasPrefix(lines[0], "stdout P ") || !strings.HasPrefix(lines[1], "stdout P ") || !strings.HasPrefix(lines[2], "stdout F x") || lines[3] != "stdout F end" {
		t.Errorf("%d lines", len(lines))
	}
	s = r.sh("many", "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done")
	s.Log.MaxBytes, s.Log.MaxFiles = 20000, 9
	r.run(s)
	r.wait("many")
	lines = r.log("many")
	for i, l := range lines {
		if want := fmt.Sprintf("stdout F line %d", i); l != want {
			t.Fatalf("line %d is %q", i, l)
		}
	}
	if len(lines) != 3000 {
		t.Errorf("%d lines", len(lines))
	}
	if fi, err := os.Stat(filepath.Join(r.logs, "many.log.1")); err != nil || fi.Size() > 20000 {
		t.Errorf("rotated file: %v %v", fi, err)
	}
}
