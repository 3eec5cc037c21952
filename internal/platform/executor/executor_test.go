package executor

import (
	"testing"
)

func TestThin(t *testing.T) {
	s := spec("sh", "-c", "cat /proc/self/mountinfo; grep -E 'Cap|Seccomp|NoNew' /proc/self/status; ls -l /dev /proc/self/fd; id; pwd; hostname; ip a")
	r := run(t, Config{Spec: s, Rootfs: layers(t, image(t))})
	t.Logf("%d %d\n%s", r.code, r.signal, r.out)
}
