package server

import (
	"io"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/api"
)

func TestARequestThatIsRefusedUnreadIsNotWaitedForLongerThanABodyMayTake(t *testing.T) {
	short := contract
	short.body = 100 * time.Millisecond
	f := start(t, func(o *Options) { o.timeouts = &short })
	r, w := io.Pipe()
	defer w.Close()
	f.expect(f.do(f.client(false), f.request("POST", "/v1/agent/heartbeat", r)), 401, api.CodeCertificateRequired)
	r, w = io.Pipe()
	defer w.Close()
	f.expect(f.do(f.host("web-0"), f.request("POST", "/v1/no/such/endpoint", r)), 404, api.CodeNotFound)
}
