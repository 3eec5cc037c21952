package container

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/orlop-io/orlop/internal/platform/cgroup"
)

// What is written by hand is what encoding/json would have written: it reads both alike. All
// fields are set, so that one that is added to the record and not written is seen.
func FuzzRecord(f *testing.F) {
	f.Add("id", "/b", "a", "b", uint64(1), int64(1), true)
	f.Add("", "\"\\\x00\x1f\x7f\u2028<&>", "\xff\xfe", "\ufffd\U0010ffff", uint64(1<<63), int64(1<<33), false)
	f.Fuzz(func(t *testing.T, id, path, key, value string, n uint64, sec int64, flag bool) {
		in := record{
			Version: int(n >> 33), OCIVersion: value, ID: id, Bundle: path, Rootfs: key, Created: time.Unix(sec%(1<<37), int64(n%1e9)).UTC(), Owner: uint32(n),
			Annotations: map[string]string{key: value, id: path, "": key}, Cgroup: path, Driver: cgroup.Driver(value),
			CgroupBelow: cgroup.Place{"memory": path, value: id}, PIDNamespace: flag, PID: int(n >> 34), Start: n, Boot: id, Notify: value, Restore: flag,
		}
		if fields := reflect.TypeFor[record]().NumField(); fields != 17 {
			t.Fatalf("%d fields: set the new ones here", fields)
		}
		for _, r := range []record{in, {Created: in.Created}} {
			theirs, err := json.Marshal(&r)
			ours, e := r.encode()
			if (err == nil) != (e == nil) {
				t.Fatalf("%v, json has %v", e, err)
			}
			if err != nil {
				return
			}
			var want, got record
			if err := json.Unmarshal(theirs, &want); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(ours, &got); err != nil {
				t.Fatalf("%v: %s", err, ours)
			}
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("%s\n%s", ours, theirs)
			}
		}
	})
}
