package plan

import "testing"

func TestHomeOf(t *testing.T) {
	const table = "root:x:0:0::/root:/bin/sh\nshort:x:5\n\nuser:x:1000:1000:a comment:/home/user:\nuser:x:1000:1:::\nlast:x:9:9::/last"
	for uid, want := range map[uint64]string{0: "/root", 5: "", 1000: "/home/user", 9: "/last", 1: ""} {
		if got := homeOf(table, uid); got != want {
			t.Errorf("user %d: got %q, want %q", uid, got, want)
		}
		if want == "" {
			want = "/"
		}
		if got := HomeOf(table, uid); got != want {
			t.Errorf("user %d: got %q, want %q", uid, got, want)
		}
	}
}

// FuzzHomeOf: the file is the image's.
func FuzzHomeOf(f *testing.F) {
	f.Add("root:x:0:0::/root:/bin/sh\n", uint64(0))
	f.Fuzz(func(t *testing.T, table string, uid uint64) { homeOf(table, uid) })
}
