package routed

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
)

var (
	afterRemembered = fault.New("network.setup.former-setting-recorded")
	afterSet        = fault.New("network.setup.setting-changed")
	afterRestored   = fault.New("network.teardown.setting-restored")
)

// setting is what the durable state keeps of a kernel setting that was changed, by its path
// below /proc/sys.
type setting struct {
	Former, Now string
	// Boot is the boot id under which it was changed; a later boot has forgotten the change.
	Boot string
}

// bootID returns the id of this boot.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

func read(key string) (string, error) {
	b, err := os.ReadFile(filepath.Join("/proc/sys", key))
	return strings.TrimSpace(string(b)), err
}

// change sets a kernel setting and remembers what it was. changed says that it was not so.
func (p *Plane) change(key, value string) (changed bool, err error) {
	now, err := read(key)
	if err != nil {
		return false, fmt.Errorf("read setting %s: %w", key, err)
	}
	boot, err := bootID()
	if err != nil {
		return false, err
	}
	old, err := p.former.Get(key)
	switch {
	case errors.Is(err, errs.NotFound):
		if now == value {
			return false, nil
		}
	case err != nil:
		return false, err
	case old.Boot == boot && now == value:
		return false, nil
	case now == value: // of an earlier boot, and set by somebody else since
		return false, p.former.Delete(key)
	}
	if errors.Is(err, errs.NotFound) || old.Boot != boot {
		if err := p.former.Put(key, setting{Former: now, Now: value, Boot: boot}); err != nil {
			return false, err
		}
		afterRemembered.Hit()
	}
	if err := os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0); err != nil {
		return false, errs.New(errs.FailedPrecondition, "set %s to %s, which pods need (is /proc/sys writable?): %w", key, value, err)
	}
	afterSet.Hit()
	return true, nil
}

// restore gives every changed setting its former value, unless somebody else has changed it
// since. Settings of interfaces that are gone are gone with them.
func (p *Plane) restore() error {
	all, err := p.former.All()
	if err != nil {
		return err
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	var failed []error
	for key, s := range all {
		now, err := read(key)
		if err == nil && s.Boot == boot && now == s.Now {
			err = os.WriteFile(filepath.Join("/proc/sys", key), []byte(s.Former), 0)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			failed = append(failed, fmt.Errorf("restore setting %s: %w", key, err))
			continue
		}
		afterRestored.Hit()
		if err := p.former.Delete(key); err != nil {
			return err
		}
	}
	return errors.Join(failed...)
}
