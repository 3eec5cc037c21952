package executor

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzOptions: whatever options a mount has, what is set and what is cleared of it are
// apart and nothing but attributes of mounts, the last word counts, and no option that
// restricts is taken for one of the filesystem's, which might not know it.
func FuzzOptions(f *testing.F) {
	for _, seed := range []string{"", "ro,rw,ro", "rro,rrw", "nosuid,suid,rnosuid", "noatime,strictatime,relatime", "rbind,rslave,ro", "bind,private,shared",
		"size=64k,mode=755,nodev", "idmap,ridmap", "r,rr,rrr", "remount,tmpcopyup,defaults", "nosymfollow,\x00", "ronly,rosuid"} {
		f.Add(seed)
	}
	const known = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR__ATIME |
		unix.MOUNT_ATTR_NODIRATIME | unix.MOUNT_ATTR_NOSYMFOLLOW
	f.Fuzz(func(t *testing.T, text string) {
		options := strings.Split(text, ",")
		o, err := parseOptions(options)
		if err != nil {
			return
		}
		for name, m := range map[string][2]uint64{"mount": {o.set, o.clear}, "mounts below": {o.deepSet, o.deepClear}} {
			// The times are one number of several bits: it is cleared as a whole to be set.
			if set, clear := m[0], m[1]; set&clear&^unix.MOUNT_ATTR__ATIME != 0 || (set|clear)&^known != 0 {
				t.Errorf("%q: of the %s %x is set and %x cleared", text, name, set, clear)
			}
		}
		for _, d := range o.data {
			if _, ok := attrs[d]; ok && d != "ro" {
				t.Errorf("%q: %s goes to the filesystem", text, d)
			}
		}
		for _, restrict := range []string{"ro", "nosuid", "nodev", "noexec", "nosymfollow"} {
			last := ""
			for _, name := range options {
				if a, ok := attrs[name]; ok && (a.set|a.clear)&attrs[restrict].set != 0 {
					last = name
				}
			}
			if got := o.set&attrs[restrict].set != 0; got != (last == restrict) {
				t.Errorf("%q: %s is set: %v, and the last word is %q", text, restrict, got, last)
			}
		}
		again, err := parseOptions(slices.Concat(options, options))
		if err != nil || again.set != o.set || again.clear != o.clear || again.propagation != o.propagation {
			t.Errorf("%q means something else when it is said twice", text)
		}
	})
}
