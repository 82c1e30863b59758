<?php
// Refuses requests that did not come through Cloakroom. CLIENT_SECRETS has the path of the secret.
// In php.ini: auto_prepend_file = "/path/to/proof.php". In a router script: require 'proof.php';

(function () {
    $header = fn ($name) => $_SERVER['HTTP_' . strtoupper(strtr($name, '-', '_'))] ?? null;
    preg_match('/^v1 t=(\d{1,12}) m=([\w-]{43})$/D', $header('x-session-proof') ?? '', $proof);
    [, $time, $mac] = $proof + ['', '0', ''];
    $lines = ['cloakroom-proof-v1', $time];
    foreach (['url', 'token', 'id', 'next-id', 'principal', 'version', 'data', 'data-omitted', 'error'] as $name) {
        if (($value = $header("x-session-$name")) !== null) {
            $lines[] = "x-session-$name:$value";
        }
    }
    foreach (explode(':', getenv('CLIENT_SECRETS')) as $file) { // two, while the secret is changed
        $secret = preg_replace('/\r?\n$/D', '', file_get_contents($file));
        $right = base64_encode(hash_hmac('sha256', implode("\n", $lines), $secret, true));
        $right = rtrim(strtr($right, '+/', '-_'), '=');
        if (strlen($secret) >= 32 && hash_equals($right, $mac) && abs(time() - $time) <= 300) {
            return;
        }
    }
    http_response_code(403);
    exit("This request did not come through Cloakroom.\n");
})();
