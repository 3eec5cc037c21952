package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/test/checkpoints"
)

// loadProfiles has the kernel confine by these profiles as long as the test runs. Where it has no AppArmor the test is
// passed over, which the test machine does not let happen.
func loadProfiles(t *testing.T, text string) {
	t.Helper()
	if on, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled"); string(on) != "Y\n" {
		if os.Getenv("ORLOP_TEST_APPARMOR") != "" {
			t.Fatalf("AppArmor is not enabled: %q", on)
		}
		t.Skip("this kernel has no AppArmor: run by test/vm (TestHosts/v2)")
	}
	profiles := filepath.Join(t.TempDir(), "profiles")
	if err := os.WriteFile(profiles, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	parser := func(flag string) {
		t.Helper()
		if out, err := exec.Command("apparmor_parser", "--skip-cache", flag, profiles).CombinedOutput(); err != nil {
			t.Fatalf("apparmor_parser %s: %v: %s (package apparmor)", flag, err, out)
		}
	}
	parser("--replace")
	t.Cleanup(func() { parser("--remove") })
}

// A restored container is confined as it was, and one that would not be as its specification says is not restored.
func TestRestoreAppArmor(t *testing.T) {
	checkpoints.NeedCRIU(t, "criu")
	profile := fmt.Sprintf("orlop-restore-%d", os.Getpid())
	loadProfiles(t, fmt.Sprintf("profile %s flags=(attach_disconnected) { file, capability, network, signal, ptrace, mount, umount, unix, deny /tmp/kept w, }\n", profile))
	r := counterRig(t)
	r.spec.Process.ApparmorProfile = profile
	r.save()
	dir, again := r.saved()
	r.spec.Process.ApparmorProfile = "unconfined"
	r.save()
	r.fails(profile+"\\\", and the specification wants \\\"unconfined", "restore", "-d", "--image-path", dir, r.id)
	r.gone()
	r.spec.Process.ApparmorProfile = profile
	r.save()
	again()
	if res := r.run("restore", "-d", "--image-path", dir, r.id); res.code != 0 {
		t.Fatalf("%+v\n%s", res, lastLines(dir+"/restore.log"))
	}
	r.counts()
	if now, err := os.ReadFile(fmt.Sprintf("/proc/%d/attr/current", r.state().Pid)); string(now) != profile+" (enforce)\n" {
		t.Errorf("it is confined by %q (%v)", now, err)
	}
	r.kill()
}

// A profile of AppArmor confines the container, and each command the one that it asks for.
func TestAppArmor(t *testing.T) {
	const all = "file, capability, network, signal, ptrace, mount, umount,"
	first, second := fmt.Sprintf("orlop-test-%d", os.Getpid()), fmt.Sprintf("orlop-test-%d-second", os.Getpid())
	loadProfiles(t, fmt.Sprintf("profile %s flags=(attach_disconnected) { %s deny /tmp/secret rw, deny /tmp/kept w, }\nprofile %s flags=(attach_disconnected) { %s deny /tmp/kept w, }\n", first, all, second, all))

	const look = "cat /proc/self/attr/current; cat /tmp/secret; echo x >/tmp/kept"
	confined := first + " (enforce)\n"
	for name, change := range map[string]func(s *specs.Spec){
		"plain":             func(*specs.Spec) {},
		"no new privileges": func(s *specs.Spec) { s.Process.NoNewPrivileges = true },
		"no privileges": func(s *specs.Spec) {
			s.Process.NoNewPrivileges, s.Process.Capabilities = true, nil
			s.Process.User.UID = 1000
		},
		"user namespace": func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			ids := []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
			s.Linux.UIDMappings, s.Linux.GIDMappings = ids, ids
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "/bin/sh", "-c", look)
			r.spec.Process.ApparmorProfile, r.spec.Process.NoNewPrivileges = first, false
			change(r.spec)
			r.save()
			os.Chmod(r.bundle, 0o755)
			os.Chmod(filepath.Dir(r.bundle), 0o755)
			os.WriteFile(r.bundle+"/rootfs/tmp/secret", []byte("told\n"), 0o666)
			os.WriteFile(r.bundle+"/rootfs/tmp/kept", nil, 0o666)
			got := r.run("run", r.id)
			if got.out != confined || got.code == 0 || strings.Count(got.err, "ermission denied") != 2 {
				t.Errorf("%+v, want %q and two refusals", got, confined)
			}
		})
	}

	r := newRig(t, "/bin/sleep", "100")
	r.spec.Process.ApparmorProfile = "orlop-test-not-there"
	r.save()
	r.fails("process.apparmorProfile: orlop-test-not-there is not loaded; load it with: apparmor_parser", "run", "-d", r.id)
	r.spec.Process.ApparmorProfile = first
	r.save()
	os.WriteFile(r.bundle+"/rootfs/tmp/secret", []byte("told\n"), 0o666)
	r.ok("run", "-d", r.id)
	defer r.kill()
	for _, tt := range []struct {
		args []string
		out  string
		code int
	}{
		{nil, confined, 1},
		{[]string{"--apparmor", second}, second + " (enforce)\ntold\n", 1},
		{[]string{"--apparmor", "unconfined"}, "unconfined\ntold\n", 0},
	} {
		got := r.run(append(append([]string{"exec"}, tt.args...), r.id, "sh", "-c", look)...)
		if got.out != tt.out || got.code != tt.code {
			t.Errorf("exec %v: %+v, want %q and %d", tt.args, got, tt.out, tt.code)
		}
	}
	r.fails("process.apparmorProfile: orlop-test-not-there is not loaded", "exec", "--apparmor", "orlop-test-not-there", r.id, "true")
	var f struct {
		Linux struct{ Apparmor struct{ Enabled bool } }
	}
	if err := json.Unmarshal([]byte(r.ok("features")), &f); err != nil || !f.Linux.Apparmor.Enabled {
		t.Errorf("features: %+v %v", f, err)
	}
}
