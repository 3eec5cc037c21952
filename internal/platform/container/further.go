package container

import (
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/rawfile"
	"github.com/orlop-io/orlop/internal/base/unmarshal"
	"github.com/orlop-io/orlop/internal/platform/seccomp"
)

// further is what the specification says of further processes. The rest of it, most of all
// the profile with its four hundred names, is passed over.
type further struct {
	Process *specs.Process `json:"process"`
	Linux   struct {
		Seccomp      unmarshal.Raw            `json:"seccomp"`
		IntelRdt     *specs.LinuxIntelRdt     `json:"intelRdt"`
		Personality  *specs.LinuxPersonality  `json:"personality"`
		MemoryPolicy *specs.LinuxMemoryPolicy `json:"memoryPolicy"`
	} `json:"linux"`
}

// FirstProcess returns the process that the container was created with.
func (c *Container) FirstProcess() (*specs.Process, error) {
	f, err := c.further()
	if err != nil {
		return nil, err
	}
	return f.Process, nil
}

func (c *Container) further() (*further, error) {
	if c.more == nil {
		path := c.dir + "/config.json"
		data, err := rawfile.Read(path)
		if err != nil {
			return nil, fmt.Errorf("read specification: %w", err)
		}
		var f further
		if err := unmarshal.JSON(data, &f); err != nil {
			return nil, errs.New(errs.Invalid, "specification %s: %w", path, err)
		}
		c.more = &f
	}
	return c.more, nil
}

// saveFilter keeps the compiled profile for further processes. It is as trustworthy as the
// specification beside it: who could change the one could change the other.
func (c *Container) saveFilter() error {
	if c.spec.Linux == nil || c.spec.Linux.Seccomp == nil {
		return nil
	}
	p, err := seccomp.Compile(c.spec.Linux.Seccomp)
	if err != nil || p.Notify {
		return nil // what is wrong with the profile the executor tells
	}
	data, err := p.MarshalBinary()
	if err == nil {
		err = rawfile.Write(c.dir+"/seccomp", data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("record container: %w", err)
	}
	return nil
}

// filter is the profile of a further process: compiled, or where it is not kept that way, as
// it is in the specification.
func (c *Container) filter() (*seccomp.Program, *specs.LinuxSeccomp, error) {
	f, err := c.further()
	if err != nil || f.Linux.Seccomp == "" || f.Linux.Seccomp == "null" {
		return nil, nil, err
	}
	if data, err := rawfile.Read(c.dir + "/seccomp"); err == nil {
		var p seccomp.Program
		if p.UnmarshalBinary(data) == nil && !p.Notify {
			return &p, nil, nil
		}
	}
	var profile specs.LinuxSeccomp
	if err := unmarshal.JSON([]byte(f.Linux.Seccomp), &profile); err != nil {
		return nil, nil, errs.New(errs.Invalid, "specification %s/config.json: linux.seccomp: %w", c.dir, err)
	}
	return nil, &profile, nil
}
