// Command guest is the init of the test machine: it mounts what an ordinary
// distribution would, loads modules, and runs the commands that the host sends. Under
// other names it is the machine's modprobe, and what systemd starts in order to run
// commands.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/test/vm/boot"
)

func main() {
	switch filepath.Base(os.Args[0]) {
	case "modprobe":
		// The kernel calls it as: modprobe -q -- NAME
		if err := modprobe(os.Args[len(os.Args)-1]); err != nil {
			os.Exit(1)
		}
		return
	case "unit": // systemd's child
		serve()
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "this is the init of Orlop's test machine; it is of use only there")
		os.Exit(2)
	}
	c, err := readConfig(boot.ConfigFile)
	if err != nil {
		fail(err)
	}
	if err := prepare(c); err != nil {
		fail(err)
	}
	if c.Systemd {
		fail(startSystemd(c))
	}
	serve()
}

func readConfig(file string) (*boot.Config, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	c := &boot.Config{}
	return c, json.Unmarshal(b, c)
}

// serve runs what the host sends until it has had enough.
func serve() {
	port, err := openPort()
	if err != nil {
		fail(err)
	}
	host := &sender{w: port}
	if err := host.status(boot.FrameReady, boot.Status{}); err != nil {
		fail(err)
	}
	for {
		kind, content, err := boot.ReadFrame(port)
		if err != nil || kind != boot.FrameCommand {
			off()
		}
		c := &boot.Command{}
		if err := json.Unmarshal(content, c); err != nil {
			fail(err)
		}
		if err := host.status(boot.FrameEnd, run(c, host)); err != nil {
			fail(err)
		}
	}
}

// fail ends the machine with an error that is the harness's own.
func fail(err error) {
	fmt.Fprintln(os.Stderr, "orlop-vm:", err)
	if port, perr := openPort(); perr == nil {
		boot.WriteJSON(port, boot.FrameReady, boot.Status{Error: err.Error()})
		port.Close()
	}
	off()
}

// off turns the machine off. QEMU runs with -no-reboot, so a restart ends it.
func off() {
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	select {}
}

// sender writes frames; it is safe for concurrent use.
type sender struct {
	mu sync.Mutex
	w  *os.File
}

func (s *sender) frame(kind byte, content []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return boot.WriteFrame(s.w, kind, content)
}

func (s *sender) status(kind byte, st boot.Status) error {
	b, err := json.Marshal(st)
	if err != nil {
		return err
	}
	return s.frame(kind, b)
}

// openPort opens the virtio-serial port, which can be open only once. There is no udev to
// make a link to it.
func openPort() (*os.File, error) {
	list, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, f := range list {
		if b, err := os.ReadFile(f); err == nil && strings.TrimSpace(string(b)) == boot.Port {
			return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(f)), os.O_RDWR, 0)
		}
	}
	return nil, fmt.Errorf("no virtio-serial port %s", boot.Port)
}
