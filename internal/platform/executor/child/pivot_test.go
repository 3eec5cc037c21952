package child

import (
	"slices"
	"testing"
)

func TestChildren(t *testing.T) {
	table := "21 1 0:2 / / rw - rootfs rootfs rw\n30 21 0:5 / /proc rw shared:3 - proc proc rw\n" +
		"31 30 0:6 / /proc/fs rw - x x rw\n32 21 0:7 / /with\\040blank\\134 rw - tmpfs tmpfs rw\n33 21 0:8 / / rw - overlay overlay rw\n34 21 0:9 / /last rw - tmpfs tmpfs rw"
	if got, want := children(table, "21"), []string{"/proc", "/with blank\\", "/last"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func FuzzChildren(f *testing.F) {
	f.Add("32 21 0:7 / /with\\040 rw - tmpfs tmpfs rw\n", "21")
	f.Fuzz(func(t *testing.T, table, id string) { children(table, id) })
}
