package kms

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awskmsapi "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/logging"
	gcaws "gocloud.dev/aws"
	"gocloud.dev/secrets"
	"gocloud.dev/secrets/awskms"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// awsOpener opens awskms://KEY?region=REGION, KEY an id, an ARN (awskms:///arn:…) or alias/NAME. The parameters are gocloud.dev's,
// endpoint and role among them; context_NAME=VALUE is part of the encryption context. Credentials are the SDK's default chain.
type awsOpener struct{ Config }

const awsContextPrefix = "context_"

// OpenKeeperURL implements secrets.KeeperURLOpener. It is awskms.URLOpener with an HTTP client and a retryer of our own.
func (o awsOpener) OpenKeeperURL(ctx context.Context, u *url.URL) (*secrets.Keeper, error) {
	params := u.Query()
	opts := awskms.KeeperOptions{EncryptionContext: map[string]string{}}
	for name, values := range params {
		if len(values) != 1 {
			return nil, fault.New(fault.Invalid, "%s: is there %d times", name, len(values))
		}
		if key, ok := strings.CutPrefix(name, awsContextPrefix); ok {
			opts.EncryptionContext[key] = values[0]
			params.Del(name)
		}
	}
	cfg, err := gcaws.V2ConfigFromURLParams(ctx, params)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%s", scrub(err))
	}
	if cfg.Region == "" {
		return nil, fault.New(fault.Invalid, "no region: want ?region=REGION, or AWS_REGION set")
	}
	client, idle := o.client(ctx, nil)
	cfg.HTTPClient, cfg.Logger = client, logging.Nop{} // it would write to standard error
	api := awskmsapi.NewFromConfig(cfg, func(opts *awskmsapi.Options) { opts.RetryMaxAttempts = 2 })
	keyID := strings.TrimPrefix(path.Join(u.Host, u.Path), "/")
	g := &guard{
		inner: awskms.OpenKeeper(api, keyID, &opts), timeout: o.Timeout, status: awsStatus, close: idle,
		secrets: fromEnvironment("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
	}
	return g.keeper(), nil
}

func awsStatus(err error) (fault.Kind, bool) {
	var api smithy.APIError
	if errors.As(err, &api) {
		if _, throttled := retry.DefaultThrottleErrorCodes[api.ErrorCode()]; throttled {
			return fault.Unavailable, true
		}
		switch api.ErrorCode() { // all with status 400
		case "AccessDeniedException", "DisabledException", "ExpiredTokenException", "IncompleteSignature", "InvalidGrantTokenException",
			"InvalidSignatureException", "MissingAuthenticationTokenException", "OptInRequired", "UnrecognizedClientException":
			return fault.Denied, true
		case "NotFoundException":
			return fault.NotFound, true
		}
	}
	var answer interface{ HTTPStatusCode() int }
	if errors.As(err, &answer) && answer.HTTPStatusCode() != http.StatusOK && answer.HTTPStatusCode() != 0 {
		return kindOfStatus(answer.HTTPStatusCode()), true
	}
	return 0, false
}
