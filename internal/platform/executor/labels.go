package executor

import (
	"bufio"
	"os"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
)

// A label of a security module is written to the process's attributes and becomes its own
// at execve (apparmor(7), selinux(8)). A profile is asked for as a matter of safety, so
// where the kernel cannot apply one nothing starts.

var apparmorEnabled = sync.OnceValue(func() bool {
	b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && strings.HasPrefix(string(b), "Y")
})

var selinuxEnabled = sync.OnceValue(func() bool {
	var st unix.Statfs_t
	return unix.Statfs("/sys/fs/selinux", &st) == nil && st.Type == unix.SELINUX_MAGIC
})

// labels puts the process's labels into the plan.
func (b *builder) labels(p *specs.Process) error {
	if profile := p.ApparmorProfile; profile != "" {
		switch {
		case apparmorEnabled():
			if err := apparmorLoaded(profile); err != nil {
				return err
			}
			b.plan.Add(plan.Attribute, nil, "exec "+profile, "AppArmor profile "+profile, "self/attr/apparmor/exec", "self/attr/exec")
		case profile != "unconfined": // as everything is
			return errs.New(errs.Unsupported, "process.apparmorProfile: %s cannot be applied: AppArmor is not enabled in this kernel (/sys/module/apparmor/parameters/enabled)", profile)
		}
	}
	if p.SelinuxLabel != "" {
		if !selinuxEnabled() {
			return errs.New(errs.Unsupported, "process.selinuxLabel: %s cannot be applied: SELinux is not enabled in this kernel (/sys/fs/selinux)", p.SelinuxLabel)
		}
		b.plan.Add(plan.Attribute, nil, p.SelinuxLabel, "SELinux label "+p.SelinuxLabel, "self/attr/exec")
	}
	return nil
}

// checkMountLabel refuses what is not done. Where there is no SELinux it says that.
func checkMountLabel(label string) error {
	switch {
	case label == "":
		return nil
	case !selinuxEnabled():
		return errs.New(errs.Unsupported, "linux.mountLabel: %s cannot be applied: SELinux is not enabled in this kernel (/sys/fs/selinux)", label)
	}
	return errs.New(errs.Unsupported, "linux.mountLabel: labels of mounts are not supported yet")
}

// keyring makes the session keyring, with the process's label where there is SELinux.
func (b *builder) keyring(label string) {
	if label == "" || !selinuxEnabled() {
		b.plan.Add(plan.Keyring, nil, "orlop")
		return
	}
	b.plan.Add(plan.Attribute, nil, label, "SELinux label of keys "+label, "self/attr/keycreate")
	b.plan.Add(plan.Keyring, nil, "orlop")
	b.plan.Add(plan.Attribute, nil, "", "SELinux label of keys", "self/attr/keycreate")
}

// apparmorLoaded tells of a profile that is not there, as far as that can be seen.
func apparmorLoaded(profile string) error {
	if profile == "unconfined" || strings.ContainsAny(profile, ":&") { // of another namespace, or stacked
		return nil
	}
	f, err := os.Open("/sys/kernel/security/apparmor/profiles")
	if err != nil {
		return nil // the kernel will tell
	}
	defer f.Close()
	in := bufio.NewScanner(f)
	for in.Scan() {
		if line := in.Text(); strings.HasPrefix(line, profile) && strings.HasPrefix(line[len(profile):], " (") {
			return nil
		}
	}
	return errs.New(errs.NotFound, "process.apparmorProfile: %s is not loaded; load it with: apparmor_parser -r FILE", profile)
}
