package cgroup

import (
	"maps"
	"math"
	"slices"
	"strings"

	godbus "github.com/godbus/dbus/v5"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// PropertyAnnotation begins the name of an annotation that is a property for the container's
// unit (runc, docs/systemd.md).
const PropertyAnnotation = "org.systemd.property."

// Property is a property of a systemd unit beside those of the resources, as
// systemctl show lists them.
type Property struct {
	name  string
	value godbus.Variant
}

// Properties reads the annotations that are properties: the name behind
// PropertyAnnotation, the value in the text format of GVariant (`uint64 5`, `'mixed'`,
// `true`). A name that ends in Sec, as the manual pages have it, is one in microseconds to
// systemd: the value is in seconds and any kind of number. What cannot be read, and what
// would take the container from where it is looked for, is errs.Invalid. Whether systemd
// knows a property and of which type it is, it tells when the unit begins.
func Properties(annotations map[string]string) ([]Property, error) {
	var list []Property
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		name, ok := strings.CutPrefix(key, PropertyAnnotation)
		if !ok {
			continue
		}
		refuse := func(why string) error {
			return errs.New(errs.Invalid, "annotation %s=%s: %s", key, annotations[key], why)
		}
		if len(name) < 3 || strings.ContainsFunc(name, func(c rune) bool { return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') }) {
			return nil, refuse("the name of a property is three letters or more")
		}
		if name == "Slice" || name == "PIDs" {
			return nil, refuse("linux.cgroupsPath says where the container is")
		}
		value, err := godbus.ParseVariant(annotations[key], godbus.Signature{})
		if err != nil {
			return nil, refuse("the value is not in the text format of GVariant, like uint64 5 or 'text': " + err.Error())
		}
		if stem, ok := strings.CutSuffix(name, "Sec"); ok && stem != "" && stem[len(stem)-1] >= 'a' && stem[len(stem)-1] <= 'z' {
			usec, ok := microseconds(value.Value())
			if !ok {
				return nil, refuse("seconds are a number of 0 and more")
			}
			name, value = stem+"USec", godbus.MakeVariant(usec)
		}
		if slices.ContainsFunc(list, func(p Property) bool { return p.name == name }) {
			return nil, refuse("the property is given in seconds and in microseconds")
		}
		list = append(list, Property{name, value})
	}
	return list, nil
}

// microseconds turns seconds of any type of D-Bus's numbers.
func microseconds(v any) (uint64, bool) {
	const unit, most = 1_000_000, math.MaxInt64 / 1_000_000
	signed := func(n int64) (uint64, bool) { return uint64(n) * unit, n >= 0 && n <= most }
	switch n := v.(type) {
	case byte:
		return uint64(n) * unit, true
	case int16:
		return signed(int64(n))
	case uint16:
		return uint64(n) * unit, true
	case int32:
		return signed(int64(n))
	case uint32:
		return uint64(n) * unit, true
	case int64:
		return signed(n)
	case uint64:
		return n * unit, n <= most
	case float64:
		return uint64(n * unit), n >= 0 && n <= most
	}
	return 0, false
}
