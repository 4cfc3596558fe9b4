package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"nixfleet.dev/nixfleet/api"
)

// maxBody is how much of a body is read.
const maxBody = 64 << 10

// checkHTTP passes when the URL itself answers as expected: a redirect is an answer like any other. It
// uses no proxy and no connection twice, so that it sees what a new client would.
func checkHTTP(ctx context.Context, p api.Probe) error {
	transport := &http.Transport{DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxBody}
	defer transport.CloseIdleConnections()
	client := &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "nixfleet-agent")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != p.ExpectStatus {
		return fmt.Errorf("status %d, not %d", resp.StatusCode, p.ExpectStatus)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return fmt.Errorf("reading the body: %w", err)
	}
	if !bytes.Contains(body, []byte(p.BodyContains)) {
		return fmt.Errorf("the first %d bytes of the body do not contain %q", len(body), p.BodyContains)
	}
	return nil
}

// checkTCP passes when the address takes a connection.
func checkTCP(ctx context.Context, p api.Probe) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.Address)
	if err != nil {
		return err
	}
	conn.Close()
	return nil
}

// letGo is how long a command that ended may have others hold on to its output.
const letGo = time.Second

// checkExec passes when the command exits as expected. It runs in a process group of its own, all of
// which is killed when the timeout is over, with nothing of the agent's environment but PATH.
func checkExec(ctx context.Context, p api.Probe) error {
	cmd := exec.CommandContext(ctx, p.Command[0], p.Command[1:]...)
	printed := &tail{}
	cmd.Dir, cmd.Env = "/", []string{"PATH=" + os.Getenv("PATH")}
	cmd.Stdout, cmd.Stderr = printed, printed
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return killGroup(cmd.Process.Pid) }
	cmd.WaitDelay = letGo
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		_ = killGroup(cmd.Process.Pid) // whoever it left behind; the command itself has succeeded
		err = nil
	}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return errors.Join(errors.New("it was killed"), printed.err())
	case err != nil && !errors.As(err, &exit):
		return err
	}
	if code := cmd.ProcessState.ExitCode(); code != p.ExpectExitCode {
		return errors.Join(fmt.Errorf("%v, not exit status %d", cmd.ProcessState, p.ExpectExitCode), printed.err())
	}
	return nil
}

func killGroup(leader int) error { return syscall.Kill(-leader, syscall.SIGKILL) }

// tail keeps the end of what is written.
type tail struct{ end []byte }

// Write implements io.Writer.
func (t *tail) Write(b []byte) (int, error) {
	const most = maxReason / 2
	t.end = append(t.end, b[max(0, len(b)-most):]...)
	if over := len(t.end) - most; over > 0 {
		t.end = append(t.end[:0], t.end[over:]...)
	}
	return len(b), nil
}

// err returns what was printed as an error, nil where there is nothing.
func (t *tail) err() error {
	if text := strings.TrimSpace(strings.ToValidUTF8(string(t.end), "")); text != "" {
		return errors.New(text)
	}
	return nil
}
