package cgroup

import (
	"errors"
	"testing"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// Annotations as runc takes and refuses them (its TestInitSystemdProps has the same kinds).
func TestProperties(t *testing.T) {
	for _, tt := range []struct{ key, value, name, want string }{ // no name: refused
		{"TimeoutStopUSec", "uint64 123456789", "TimeoutStopUSec", "@t 123456789"},
		{"TimeoutStopSec", "5", "TimeoutStopUSec", "@t 5000000"},
		{"TimeoutStopSec", "byte 0x05", "TimeoutStopUSec", "@t 5000000"},
		{"TimeoutStopSec", "uint64 5", "TimeoutStopUSec", "@t 5000000"},
		{"TimeoutStopSec", "1.5", "TimeoutStopUSec", "@t 1500000"},
		{"CollectMode", "'inactive-or-failed'", "CollectMode", `"inactive-or-failed"`},
		{"DefaultDependencies", "true", "DefaultDependencies", "true"},
		{"After", "['a.service', 'b.service']", "After", `["a.service", "b.service"]`},
		{"FOOSec", "'text'", "FOOSec", `"text"`}, // Sec is no ending here
		{"Sec", "5", "Sec", "5"},
		{key: "TimeoutStopSec", value: "'covfefe'"},
		{key: "TimeoutStopSec", value: "-5"},
		{key: "TimeoutStopSec", value: "uint64 18446744073709551615"},
		{key: "TimeoutStopUSec", value: "covfefe"},
		{key: "CollectMode", value: ""},
		{key: "", value: "5"},
		{key: "ab", value: "5"},
		{key: "number1", value: "5"},
		{key: "with-dash", value: "5"},
		{key: "Größe", value: "5"},
		{key: "Slice", value: "'system.slice'"},
		{key: "PIDs", value: "[uint32 1]"},
	} {
		got, err := Properties(map[string]string{PropertyAnnotation + tt.key: tt.value, "other": "x", "org.systemd.propertyX": "5"})
		if tt.name == "" {
			if !errors.Is(err, errs.Invalid) {
				t.Errorf("%s %s: %v %v", tt.key, tt.value, got, err)
			}
			continue
		}
		if err != nil || len(got) != 1 || got[0].name != tt.name || got[0].value.String() != tt.want {
			t.Errorf("%s %s: %v %v", tt.key, tt.value, got, err)
		}
	}
	if got, err := Properties(map[string]string{PropertyAnnotation + "TimeoutStopSec": "5", PropertyAnnotation + "TimeoutStopUSec": "uint64 5"}); err == nil {
		t.Errorf("one property twice: %v", got)
	}
}

func FuzzProperties(f *testing.F) {
	f.Add("TimeoutStopSec", "uint64 5")
	f.Add("Sec", "5")
	f.Add("After", "['a', 'b']")
	f.Add("Sec", "{'a': <(1, 'x')>}")
	f.Fuzz(func(t *testing.T, key, value string) {
		list, err := Properties(map[string]string{PropertyAnnotation + key: value})
		if err == nil {
			override(nil, list)
			_ = list[0].value.String()
		} else if !errors.Is(err, errs.Invalid) {
			t.Fatal(err)
		}
	})
}
