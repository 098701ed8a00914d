package sink

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager/types"
	"github.com/aws/smithy-go"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

// aws keeps the secret as the current version of a secret in AWS Secrets Manager. The secret is an operator's to create: which KMS key,
// policy and replicas it has is not for a node to choose.
type aws struct{ AWS }

// Put implements Sink.
func (a aws) Put(ctx context.Context, secret keyring.ProvisioningSecret) error {
	client, err := a.client(ctx)
	if err != nil {
		return fault.New(fault.Invalid, "aws_secrets_manager: %w", err)
	}
	// The token becomes the version's id: the same key again makes no second version.
	token := sha256.Sum256([]byte("iapmesh/rotate/v1/" + secret.ID()))
	written, err := client.PutSecretValue(ctx, &secretsmanager.PutSecretValueInput{
		SecretId: &a.SecretID, SecretString: awssdk.String(secret.String()), ClientRequestToken: awssdk.String(hex.EncodeToString(token[:])),
	})
	if err != nil {
		return a.failed(err)
	}
	back, err := client.GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{SecretId: &a.SecretID, VersionId: written.VersionId})
	switch {
	case code(err) == "AccessDeniedException": // a role that may write and not read is a good one
		return nil
	case err == nil && awssdk.ToString(back.SecretString) != secret.String():
		err = errReadBack
	}
	if err != nil {
		return a.failed(err)
	}
	return nil
}

func (a aws) client(ctx context.Context) (*secretsmanager.Client, error) {
	h, err := httpClient(a.CAFile)
	if err != nil {
		return nil, err
	}
	c, err := config.LoadDefaultConfig(ctx, config.WithRegion(a.Region))
	if err != nil {
		return nil, err
	}
	return secretsmanager.NewFromConfig(c, func(o *secretsmanager.Options) {
		o.HTTPClient = h
		o.BaseEndpoint = nil // not the environment's: the secret goes where the configuration says
		if a.Endpoint != "" {
			o.BaseEndpoint = &a.Endpoint
		}
	}), nil
}

func (a aws) failed(err error) error {
	kind := fault.Unavailable
	var missing *types.ResourceNotFoundException
	switch {
	case errors.As(err, &missing):
		return fault.New(fault.Invalid, "aws_secrets_manager %s: there is no such secret in %s: create it first", a.SecretID, a.Region)
	case code(err) == "AccessDeniedException":
		kind = fault.Denied
	}
	return fault.New(kind, "aws_secrets_manager %s: %w", a.SecretID, err)
}

// code is AWS's name of the error; empty: AWS did not answer.
func code(err error) string {
	var refused smithy.APIError
	if errors.As(err, &refused) {
		return refused.ErrorCode()
	}
	return ""
}
