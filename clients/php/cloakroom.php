<?php

/**
 * PHP's own sessions in Cloakroom: `$_SESSION` works as before.
 *
 * In php.ini: auto_prepend_file = "/path/to/cloakroom.php"
 *
 * @license MIT
 * @version 0.1.0
 */

declare(strict_types=1);

namespace Cloakroom;

/**
 * Logs in the user of this name. Call it only after the credentials were checked in this request.
 */
function login(string $name): void
{
    Client::logInOrOut($name);
}

/**
 * Logs out, and keeps the values. `session_destroy()` logs out as well.
 */
function logout(): void
{
    Client::logInOrOut(null);
}

/**
 * Returns the name of the user who is logged in.
 */
function principal(): ?string
{
    return Client::principal();
}

/**
 * Returns `session_id()` and creates the session, even an empty one, so that the next page has the same id.
 */
function id(): string
{
    return Client::keepId();
}

/**
 * Writes `$_SESSION` at once. Otherwise it is written as the head of the response leaves.
 */
function save(): void
{
    Client::save();
}

/**
 * A session that cannot be written, e.g. because a value is too large.
 */
final class SessionError extends \RuntimeException
{
}

/**
 * The session of this request.
 *
 * @internal
 */
final class Client
{
    /** The signed headers, in the order in which they are signed. */
    private const SIGNED = ['url', 'token', 'id', 'next-id', 'principal', 'version', 'data', 'data-omitted', 'error'];
    /** Another request has ended the session: the page goes out without the write. */
    private const GONE = ['session_gone', 'session_rotated', 'request_gone'];
    /** Another request has written a value that an append or a merge does not fit. */
    private const CONFLICTS = ['not_an_array', 'not_an_object'];
    private const LIMITS = [
        'session_too_large' => '; the limit is max_bytes of [session]',
        'too_many_values' => '; the limit is max_values of [session]',
        'too_many_sessions' => '; the limit is max_per_principal of [session]',
    ];
    /** A request that runs longer, in seconds, exchanges its values with parallel requests at its next session_start(). */
    private const FRESH = 1.0;

    /** Where the principal is in PHP's own sessions: in development, and in scripts. */
    private const STOCK_PRINCIPAL = 'cloakroom.principal';

    /** None if PHP's own sessions are used. */
    private static ?self $instance = null;

    private Api $api;
    /** @var array<string, string> The session headers, before the application can change $_SERVER. */
    private array $headers = [];
    private bool $isTrusted = false;
    /** Why sessions of this request are refused, if they are. */
    private ?string $refusal = null;

    /** Whether Cloakroom has a session for this request. */
    private bool $exists = false;
    /** None until it was asked for, if the headers are not believed. */
    private ?string $id = null;
    /** What is in $_COOKIE for the session. */
    private ?string $cookie = null;
    private ?string $oldPrincipal = null;
    private ?float $loadedAt = null;
    /** @var array<string, Value> The values in Cloakroom, by their keys there. */
    private array $stored = [];
    /** @var array<string, Value> The values that are to be there. */
    private array $values = [];
    /** @var string[] Keys of values that were not sent. */
    private array $unread = [];

    /** The name whose values have keys without a prefix. */
    private string $mainName = '';
    /** The name of the session that is open, or was last. */
    private ?string $name = null;
    private bool $isOpen = false;
    /** Whether the id was just drawn: PHP takes an id that validateId() confirms for a collision. */
    private bool $isFreshId = false;
    /** @var array<string, true> Names of sessions whose cookie PHP sets, which the browser must not get. */
    private array $names = [];

    private bool $isDestroyed = false;
    private bool $isRotated = false;
    private bool $isWanted = false;
    private bool $isLogInOrOut = false;
    private ?string $newPrincipal = null;
    /** Whether login() or logout() was called, which count before CLOAKROOM_CLIENT_PRINCIPAL. */
    private bool $isExplicit = false;
    private ?string $userName = null;
    private ?string $userBefore = null;
    private ?string $userAfter = null;

    /** The patch in the response's head, and its keys. */
    private ?string $headerPatch = null;
    private array $headerKeys = [];
    private bool $isLeaving = false;
    private bool $isFinishing = false;
    private bool $hasFailed = false;
    /** @var array<int|string> The keys of the values that PHP was given to decode. */
    private array $given = [];
    private bool $isUndecodable = false;

    /**
     * Takes over the sessions of a web request.
     */
    public static function start(): void
    {
        if (\in_array(\PHP_SAPI, ['cli', 'phpdbg', 'embed'], true) || self::$instance !== null) {
            return; // scripts and jobs keep PHP's own sessions
        }
        $client = new self();
        foreach ([...self::SIGNED, 'proof'] as $name) {
            $value = $_SERVER['HTTP_X_SESSION_' . \strtoupper(\strtr($name, '-', '_'))] ?? null;
            if (\is_string($value)) {
                $client->headers[$name] = $value;
            }
        }
        $secrets = $client->secrets();
        if (self::setting('FALLBACK') === 'stock' && $client->isElsewhere($secrets)) {
            if (!isset($_COOKIE[\session_name()])) { // once a visitor, as far as that can be known
                \error_log("Cloakroom: PHP's own sessions are used (CLOAKROOM_CLIENT_FALLBACK=stock)");
            }
            return;
        }
        self::$instance = $client;
        $client->verify($secrets);
        $client->install();
    }

    /**
     * Returns a setting of the environment, or of php.ini (`cloakroom.url`).
     */
    public static function setting(string $name): string
    {
        $found = \getenv("CLOAKROOM_CLIENT_$name");
        if ($found === false) {
            $found = \get_cfg_var('cloakroom.' . \strtolower($name));
        }
        return \is_string($found) ? $found : '';
    }

    private function header(string $name): ?string
    {
        return $this->headers[$name] ?? null;
    }

    /**
     * Whether the request did not come through Cloakroom, or came by a route without sessions.
     *
     * @param string[] $secrets
     */
    private function isElsewhere(array $secrets): bool
    {
        return $this->header('token') === null && (!$secrets || $this->headers === [] || $this->isProven($secrets));
    }

    /** @param string[] $secrets */
    private function verify(array $secrets): void
    {
        $url = self::setting('URL') ?: 'http://127.0.0.1:8081/_session';
        $this->api = new Api($url, $this->header('token') ?? '');
        // Requests of a route without sessions have a proof, too.
        if ($secrets && !$this->isProven($secrets)) {
            $this->fail(403, 'this request did not come through Cloakroom: X-Session-Proof is missing or wrong');
        }
        if ($this->header('token') === null) {
            // A route without sessions has none either, so only the use of a session is refused.
            $this->refusal = 'this request did not come through Cloakroom: it has no X-Session-Token';
            return;
        }
        if ($this->header('url') !== $url) {
            $this->fail(403, 'X-Session-Url is not the URL of CLOAKROOM_CLIENT_URL, ' . $url);
        }
        $this->isTrusted = $secrets || self::setting('TRUST') === 'network';
        $this->exists = $this->header('id') !== null;
        $hasValues = ($this->header('data') ?? $this->header('data-omitted')) !== null;
        if ($hasValues && !$this->isTrusted && !$this->exists) { // once a visitor, as far as that can be known
            \error_log('Cloakroom: header exchange is on, but the client has no secret: X-Session-Data is not used; '
                . 'set CLOAKROOM_CLIENT_SECRETS');
        }
        if ($this->isTrusted) {
            $this->id = self::idIn($this->header('id') ?? $this->header('next-id'));
        }
    }

    /** @param mixed $id */
    private static function idIn($id): string
    {
        return \is_string($id) && \preg_match('/^[\w-]{22,32}$/D', $id) ? $id : self::randomId();
    }

    /**
     * Returns the secrets, or ends the request if one cannot be used: no request could be verified.
     *
     * @return string[]
     */
    private function secrets(): array
    {
        $secrets = [];
        foreach (\array_filter(\explode(':', self::setting('SECRETS'))) as $file) {
            $text = @\file_get_contents($file);
            if ($text === false) {
                $reason = \preg_replace('/^.*: /', '', \error_get_last()['message'] ?? 'unknown');
                $this->fail(500, "the client secret in $file cannot be read (CLOAKROOM_CLIENT_SECRETS): $reason");
            }
            $secret = \preg_replace('/\r?\n$/D', '', $text);
            if (\strlen($secret) < 32) {
                $this->fail(500, "the client secret in $file has less than 32 bytes (CLOAKROOM_CLIENT_SECRETS)");
            }
            $secrets[] = $secret;
        }
        return $secrets;
    }

    /** @param string[] $secrets */
    private function isProven(array $secrets): bool
    {
        // PHP joins doubled headers by a comma or takes the last, so they fail as a wrong MAC.
        if (!\preg_match('/^v1 t=(\d{1,12}) m=([\w-]{43})$/D', $this->header('proof') ?? '', $proof)) {
            return false;
        }
        $lines = ['cloakroom-proof-v1', $proof[1]];
        foreach (self::SIGNED as $name) {
            $value = $this->header($name);
            if ($value !== null) {
                $lines[] = "x-session-$name:$value";
            }
        }
        $isRight = false;
        foreach ($secrets as $secret) {
            $mac = \base64_encode(\hash_hmac('sha256', \implode("\n", $lines), $secret, true));
            $isRight = \hash_equals(\rtrim(\strtr($mac, '+/', '-_'), '='), $proof[2]) || $isRight;
        }
        return $isRight && \abs(\time() - (int) $proof[1]) <= 300;
    }

    private function install(): void
    {
        if (\session_status() === \PHP_SESSION_ACTIVE) {
            $this->fail(500, 'session.auto_start = 1 starts the session too early; '
                . 'set session.auto_start = 0 in php.ini');
        }
        // The one format that can hold every key.
        \ini_set('session.serialize_handler', 'php_serialize');
        // Ids of cookies from before, and ids that a client invents, are replaced by this session's.
        \ini_set('session.use_strict_mode', '1');
        // An id in a URL opens nothing here, and would only be copied.
        \ini_set('session.use_only_cookies', '1');
        \ini_set('session.use_trans_sid', '0');
        $this->mainName = self::setting('PHP_NAME') ?: \session_name();
        if ($this->exists) {
            // Applications look for their cookie before they start a session. An id that only the API can confirm is
            // not in it: that would take a call, for pages without a session, too.
            $this->cookie = $this->isTrusted ? $this->shownId() : \bin2hex(\random_bytes(16));
            foreach ([$this->mainName, ...\array_filter(\explode(':', self::setting('PHP_NAMES')))] as $name) {
                $_COOKIE[$name] ??= $this->cookie;
            }
        }
        \session_set_save_handler(new Handler($this), false);
        \header_register_callback(fn () => $this->leave());
        // Registered again at the end, to run after the application's own shutdown functions.
        \register_shutdown_function(fn () => \register_shutdown_function(fn () => $this->finish()));
    }

    private function refuseElsewhere(): void
    {
        if ($this->refusal !== null) {
            $this->fail(500, $this->refusal);
        }
    }

    // What the handler asks for.

    public function open(string $name): void
    {
        $this->refuseElsewhere();
        $this->knownId(); // if that fails later, PHP goes on to send its cookie
        $this->names[$name] = true;
        $this->name = $name;
        $this->isOpen = true;
    }

    public function close(): void
    {
        $this->isOpen = false;
    }

    /**
     * Returns the values of the open session, as the serialize handler has them.
     */
    public function read(): string
    {
        $this->isFreshId = false;
        if ($this->loadedAt !== null && \microtime(true) - $this->loadedAt > self::FRESH) {
            $this->commit(true);
            if ($this->exists) {
                $this->fetch();
            }
        }
        $this->load();
        $this->fetchOmitted();
        $this->lookForUser();
        $format = (string) \ini_get('session.serialize_handler');
        if ($format !== 'php' && $format !== 'php_serialize') {
            $this->fail(500, "session.serialize_handler = $format is not supported; set it to php_serialize or php");
        }
        $isPhp = $format === 'php';
        $this->given = [];
        $entries = [];
        $slots = $isPhp ? 0 : 1; // the array around the values is the first
        foreach ($this->values as $full => $value) {
            $key = $this->keyOf((string) $full);
            $entry = $key === null ? null : $value->serialized($key, $slots, $isPhp);
            if ($entry !== null) {
                $entries[] = $entry[1];
                $this->given[] = $entry[0];
            }
        }
        return $isPhp ? \implode($entries) : 'a:' . \count($entries) . ':{' . \implode($entries) . '}';
    }

    /**
     * Takes the values of `$_SESSION`.
     */
    public function take(): void
    {
        if (!\is_array($_SESSION ?? null) || $this->hasFailed || $this->isUndecodable) {
            return;
        }
        $found = [];
        foreach ($this->values as $full => $value) {
            // Values of other names, and those that the site was not given.
            if ($this->keyOf((string) $full) === null || $value->isHidden) {
                $found[$full] = $value;
            }
        }
        foreach ($_SESSION as $key => $value) {
            [$full, $isEscaped] = $this->fullKey((string) $key);
            try {
                $found[$full] = Value::of($value, $this->values[$full] ?? null, $isEscaped ? (string) $key : null);
            } catch (\Throwable $error) {
                // PHP would lose the whole session.
                \error_log("Cloakroom: \$_SESSION['$key'] cannot be stored: {$error->getMessage()}");
                unset($_SESSION[$key]);
            }
        }
        $this->values = $found;
        $this->userAfter = $this->userIn($_SESSION);
    }

    /**
     * Keeps the values in Cloakroom as they are: PHP has emptied `$_SESSION`, since it could not decode them.
     */
    public function keepUndecodable(): void
    {
        $this->isUndecodable = true;
        \error_log('Cloakroom: PHP cannot decode the session, so this request does not change its values');
    }

    /**
     * Returns whether PHP is decoding the session, so that `$_SESSION` does not have all of its values yet.
     */
    private function isDecoding(): bool
    {
        $callers = \array_column(\debug_backtrace(\DEBUG_BACKTRACE_IGNORE_ARGS), 'function');
        return \array_intersect(['session_start', 'session_reset'], $callers) !== []
            && \array_diff_key(\array_flip($this->given), $_SESSION ?? []) !== [];
    }

    /**
     * Empties the session of the open name, and ends Cloakroom's if nothing else is in it.
     */
    public function destroy(): void
    {
        $this->load();
        foreach ($this->values as $full => $_) {
            if ($this->prefix() === '' || $this->keyOf((string) $full) !== null) {
                unset($this->values[$full]);
            }
        }
        $this->userBefore = $this->userAfter = null;
        $this->isWanted = false;
        if ($this->values === [] && ($this->prefix() === '' || $this->unread === [])) {
            $this->isDestroyed = $this->isDestroyed || $this->exists;
            $this->isRotated = $this->isLogInOrOut = $this->isExplicit = false;
            $this->id = self::randomId();
        } else {
            $this->rotate();
            $this->isLogInOrOut = true;
            $this->isExplicit = false;
        }
        $this->newPrincipal = null;
    }

    public function rotate(): string
    {
        $this->isFreshId = true;
        if ($this->exists && !$this->isDestroyed && !$this->isRotated) {
            $this->isRotated = true;
            $this->id = self::idAfter($this->knownId());
        }
        return $this->shownId();
    }

    public function draw(): string
    {
        $this->isFreshId = true;
        return $this->shownId();
    }

    public function isId(string $id): bool
    {
        return !$this->isFreshId && $id === $this->shownId();
    }

    // What the functions ask for.

    public static function logInOrOut(?string $name): void
    {
        $client = self::$instance;
        if ($client === null) {
            $_SESSION[self::STOCK_PRINCIPAL] = $name;
            return;
        }
        $client->refuseElsewhere();
        if ($name !== null && !\preg_match('//u', $name)) {
            throw new SessionError('The name of a user must be UTF-8');
        }
        $client->isExplicit = $client->isLogInOrOut = true;
        $client->newPrincipal = $name;
    }

    public static function principal(): ?string
    {
        $client = self::$instance;
        if ($client === null) {
            return $_SESSION[self::STOCK_PRINCIPAL] ?? null;
        }
        $client->refuseElsewhere();
        if (!$client->isLogInOrOut) {
            $client->load();
        }
        return $client->currentPrincipal();
    }

    public static function keepId(): string
    {
        $client = self::$instance;
        if ($client === null) {
            return (string) \session_id();
        }
        $client->refuseElsewhere();
        $client->isWanted = true;
        return \session_id() ?: $client->shownId();
    }

    public static function save(): void
    {
        $client = self::$instance;
        if ($client !== null) {
            $client->refuseElsewhere();
            if ($client->isOpen && \session_status() === \PHP_SESSION_ACTIVE) {
                $client->take();
            }
            $client->commit(true);
        }
    }

    // The ends of the request.

    /**
     * Runs as the head of the response leaves.
     */
    private function leave(): void
    {
        if ($this->hasFailed) {
            return;
        }
        $this->isLeaving = true;
        $this->removeCookies();
        // A warning of the decoder may be the first output.
        if ($this->isOpen && \session_status() === \PHP_SESSION_ACTIVE && !$this->isDecoding()) {
            $this->take();
        }
        $this->commit(false);
        if ($this->headerPatch !== null && \http_response_code() >= 500) {
            // An error since the end of the script: Cloakroom does not apply a patch of such a response.
            \header_remove('X-Session-Patch');
            $this->call('PATCH', $this->headerPatch, $this->headerKeys);
        }
        $this->isLeaving = false;
    }

    private function finish(): void
    {
        if ($this->hasFailed) {
            return;
        }
        $this->isFinishing = true;
        if ($this->names === [] && \session_id() !== '') {
            $this->stepAside();
        }
        if ($this->isOpen) {
            // Not active: an exception has stopped PHP as it serialized the values, or as it decoded them, and it has
            // closed the session without calling the handler.
            $isActive = \session_status() === \PHP_SESSION_ACTIVE;
            if (!$isActive && $this->given && !\array_intersect_key(\array_flip($this->given), $_SESSION ?? [])) {
                $this->keepUndecodable();
            }
            $this->take();
            if ($isActive) {
                \session_write_close();
            }
        }
        $this->commit(false);
    }

    /**
     * Leaves the session to the application's own handler.
     */
    private function stepAside(): void
    {
        if (\session_id() === $this->cookie && \session_status() === \PHP_SESSION_ACTIVE && !\headers_sent()) {
            // It took the id that the client put into $_COOKIE, which is no secret.
            \session_regenerate_id(true);
        }
        foreach (\headers_list() as $line) {
            if (\stripos($line, 'Set-Cookie: ' . \session_name() . '=') === 0) { // once a visitor
                \error_log('Cloakroom: the application has a session handler of its own, so its sessions are not in '
                    . 'Cloakroom; hold its cookie instead: hold_cookies = ["' . \session_name() . '"]');
            }
        }
    }

    /**
     * Removes PHP's session cookies: Cloakroom has its own.
     */
    private function removeCookies(): void
    {
        $kept = [];
        $isFound = false;
        foreach (\headers_list() as $line) {
            if (\preg_match('/^Set-Cookie:\s*([^=;]*)/i', $line, $match)) {
                $isOwn = isset($this->names[\rawurldecode(\trim($match[1]))]);
                $isFound = $isFound || $isOwn;
                if (!$isOwn) {
                    $kept[] = $line;
                }
            }
        }
        if ($isFound) {
            \header_remove('Set-Cookie'); // takes all of them
            foreach ($kept as $line) {
                \header($line, false);
            }
        }
    }

    // Loading and writing.

    private function load(): void
    {
        if ($this->loadedAt !== null) {
            return;
        }
        $this->loadedAt = \microtime(true);
        if ($this->isTrusted) {
            $principal = $this->header('principal');
            $this->oldPrincipal = $principal === null ? null : \rawurldecode($principal);
            $data = $this->header('data');
            if ($data !== null) {
                $this->setStored($data);
                $omitted = $this->header('data-omitted');
                $this->unread = $omitted === null ? [] : \array_map('rawurldecode', \explode(',', $omitted));
                return;
            }
        }
        if ($this->exists) {
            $this->fetch();
        }
    }

    private function fetch(): void
    {
        $this->loadedAt = \microtime(true);
        $this->unread = [];
        $body = $this->call('GET', null);
        $found = \json_decode($body, true, 1024);
        if (!\is_array($found)) {
            $this->id ??= self::randomId();
            $this->setStored('{}'); // gone in the meantime
            return;
        }
        $this->exists = \is_string($found['id'] ?? null);
        if ($this->exists && !$this->isRotated) {
            $this->id = $found['id'];
        }
        $this->id ??= self::idIn($found['next_id'] ?? null);
        $this->oldPrincipal = $found['principal'] ?? null;
        $this->setStored($body, 'values');
    }

    /**
     * Reads the values of the open name that were not sent: `$_SESSION` is an array, so that they cannot be read when
     * they are needed.
     */
    private function fetchOmitted(): void
    {
        $needed = \array_filter($this->unread, fn ($key) => $this->keyOf($key) !== null);
        if ($needed === []) {
            return;
        }
        [$stored, $values, $unread] = [$this->stored, $this->values, $this->unread];
        $this->fetch();
        $found = $this->stored;
        [$this->stored, $this->values, $this->unread] = [$stored, $values, \array_diff($unread, $needed)];
        foreach ($needed as $key) {
            if (isset($found[$key])) {
                $this->stored[$key] = $this->values[$key] = $found[$key];
            }
        }
    }

    private function setStored(string $json, ?string $member = null): void
    {
        $values = \json_decode($json, true, 1024);
        // The same again with objects: an array of PHP does not tell {} from [].
        // No property of an object begins with NUL, so such members have no shape.
        $typed = \json_decode(\preg_replace('/(?<!\\\\)"\\\\u0000/', '"N\\u0000', $json), false, 1024);
        if ($member !== null) {
            [$values, $typed] = [$values[$member] ?? [], $typed->$member ?? null];
        }
        $this->stored = [];
        foreach (\is_array($values) ? $values : [] as $key => $value) {
            $this->stored[$key] = Value::loaded($value, \str_starts_with((string) $key, "\0") ? null : $typed->{$key} ?? null);
        }
        $this->values = $this->stored;
    }

    /**
     * Writes what has changed, by the response's head or by a call.
     */
    private function commit(bool $isCall): void
    {
        if ($this->hasFailed) {
            return; // whether the last write has happened may be unknown
        }
        [$patch, $keys, $creates] = $this->patch();
        if ($patch === null) {
            return;
        }
        // If the session is still open, more changes may follow. A call for them would be overtaken: web servers keep
        // the head back until they have more of the response.
        $isLast = $this->isFinishing || !$this->isOpen;
        // nginx refuses a head of more than 4 KiB from FastCGI (fastcgi_buffer_size).
        $limit = \in_array(\PHP_SAPI, ['cli-server', 'apache2handler'], true) ? 65536 : 2048;
        $isExchange = $this->isTrusted && ($this->header('data') ?? $this->header('data-omitted')) !== null;
        if (
            $isExchange && $isLast && !$isCall && !\headers_sent() && $this->headerPatch === null
            && \http_response_code() < 500 && \strlen($patch) < $limit
        ) {
            \header("X-Session-Patch: $patch");
            $this->headerPatch = $patch;
            $this->headerKeys = $keys;
        } else {
            $this->call('PATCH', $patch, $keys);
        }
        $isSession = $this->exists && !$this->isDestroyed;
        $this->oldPrincipal = $this->currentPrincipal();
        $this->exists = $isSession || $creates;
        $this->stored = $this->values;
        $this->userBefore = $this->userAfter;
        $this->isDestroyed = $this->isRotated = $this->isWanted = $this->isLogInOrOut = $this->isExplicit = false;
        $this->newPrincipal = null;
    }

    private function currentPrincipal(): ?string
    {
        return $this->isLogInOrOut || $this->isDestroyed ? $this->newPrincipal : $this->oldPrincipal;
    }

    /**
     * Returns the patch of what has changed, if anything, the keys in it, and whether it creates a session.
     *
     * @return array{?string, string[], bool}
     */
    private function patch(): array
    {
        $isNew = !$this->exists || $this->isDestroyed;
        $old = $isNew ? [] : $this->stored;
        $this->readPrincipal();
        $isLogIn = $this->isLogInOrOut && $this->newPrincipal !== null;
        $members = ['set' => [], 'append' => [], 'merge' => []];
        $isEmpty = true;
        foreach ($this->values as $key => $value) {
            $isEmpty = $isEmpty && $value->isEmpty();
            if (($old[$key] ?? null) !== $value) {
                // What an append or a merge is for may be gone before a log-in.
                $isWhole = $this->isDestroyed || $isLogIn;
                [$member, $json] = $isWhole ? ['set', $value->json()] : $value->change($old[$key] ?? null);
                $members[$member][$key] = $json;
            }
        }
        $removed = \array_map('strval', \array_keys(\array_diff_key($old, $this->values)));
        \sort($removed, \SORT_STRING);
        $changed = \array_merge(...\array_map('array_keys', \array_values($members)));
        $keys = \array_map('strval', [...$removed, ...$changed]);
        $creates = $isNew && (!$isEmpty || $isLogIn || $this->isWanted);
        if ($isNew && !$creates) {
            return [$this->isDestroyed ? '{"destroy":true}' : null, $keys, false];
        }
        $parts = $this->isDestroyed ? ['"destroy":true'] : [];
        if ($removed) {
            $parts[] = '"remove":' . Value::encode($removed);
        }
        foreach ($members as $member => $changes) {
            if ($changes) {
                $pairs = [];
                foreach ($changes as $key => $json) {
                    $pairs[] = Value::encode((string) $key) . ':' . $json;
                }
                $parts[] = "\"$member\":{" . \implode(',', $pairs) . '}';
            }
        }
        if ($this->isLogInOrOut && ($isLogIn || !$isNew)) {
            $parts[] = '"principal":' . Value::encode($this->newPrincipal);
        }
        if ($this->isRotated && !$isNew) {
            $parts[] = '"rotate":"id"';
        }
        if ($parts === [] && !$creates) {
            return [null, [], false];
        }
        $patch = \implode(',', $parts);
        if (!$this->isDestroyed && !$this->isRotated && !$this->isLogInOrOut) {
            $patch .= ($parts ? ',' : '') . '"if_lost":"drop"';
        }
        return ['{' . $patch . '}', $keys, $creates];
    }

    /**
     * Takes a change of the value at CLOAKROOM_CLIENT_PRINCIPAL for a log-in or a log-out.
     */
    private function readPrincipal(): void
    {
        if (!$this->isExplicit && $this->userAfter !== $this->userBefore) {
            $this->isLogInOrOut = true;
            $this->newPrincipal = $this->userAfter;
            $this->userBefore = $this->userAfter;
        }
    }

    /**
     * Notes the user in the values of the open name, before the site changes them.
     */
    private function lookForUser(): void
    {
        if ($this->userName === $this->name) {
            return;
        }
        $this->readPrincipal(); // of the name before
        $this->userName = $this->name;
        $values = [];
        foreach ($this->values as $full => $value) {
            $key = $this->keyOf((string) $full);
            if ($key !== null && $key === \explode('.', self::setting('PRINCIPAL'))[0]) {
                $values[$key] = $value->inert();
            }
        }
        $this->userBefore = $this->userAfter = $this->userIn($values);
    }

    private function userIn(array $values): ?string
    {
        $path = self::setting('PRINCIPAL');
        if ($path === '') {
            return null;
        }
        $found = $values;
        foreach (\explode('.', $path) as $step) {
            $next = null;
            foreach ((array) $found as $key => $value) {
                // Names of private members are "\0Class\0name".
                if ((string) $key === $step || \str_ends_with((string) $key, "\0$step")) {
                    $next = $value;
                }
            }
            $found = $next;
        }
        $isName = \is_int($found) || (\is_string($found) && \preg_match('/./u', $found));
        return $isName ? (string) $found : null;
    }

    /**
     * Calls the session API, and returns the body of its response; of a refused write, nothing.
     *
     * @param string[] $keys
     */
    private function call(string $method, ?string $body, array $keys = []): string
    {
        $what = $keys ? 'the session (' . \implode(', ', $keys) . ')' : 'the session';
        try {
            [$status, $text] = $this->api->call($method, $body);
        } catch (SessionError $error) {
            return $this->fail(503, "$method of $what failed: {$error->getMessage()}");
        }
        if ($status < 300) {
            return $text;
        }
        $problem = \json_decode($text, true);
        $code = $problem['code'] ?? (string) $status;
        $detail = $problem['detail'] ?? $problem['title'] ?? '';
        $reason = "$method of $what failed: $code" . ($detail === '' ? '' : " ($detail)") . (self::LIMITS[$code] ?? '');
        if ($status === 401) {
            return $this->fail(403, "this request did not come through Cloakroom: $reason");
        }
        $isConflict = \in_array($code, self::CONFLICTS, true);
        $isRefused = \in_array($status, [404, 409, 410], true);
        $isGone = \in_array($code, self::GONE, true) && $this->mayDrop($code, (array) \json_decode((string) $body, true));
        if (
            $isGone || ($isConflict && \str_ends_with((string) $body, '"if_lost":"drop"}'))
            || ($isRefused && \headers_sent()) || ($method === 'GET' && $isRefused)
        ) {
            \error_log("Cloakroom: $reason");
            return '';
        }
        if ($method === 'PATCH' && $status < 500 && !$isRefused && !$isConflict) {
            return $this->refuse($reason . $this->sizes($keys));
        }
        return $this->fail(503, $reason);
    }

    /**
     * Returns whether the page may go out without a write to a session that has ended. A log-in must not seem to have
     * happened, and neither must a log-out, unless the session is gone.
     */
    private function mayDrop(string $code, array $patch): bool
    {
        $isLogOut = \array_key_exists('principal', $patch) || isset($patch['destroy']);
        return !isset($patch['principal']) && (!$isLogOut || $code === 'session_gone');
    }

    /** @param string[] $keys */
    private function sizes(array $keys): string
    {
        $sizes = [];
        foreach ($keys as $key) {
            $sizes[$key] = isset($this->values[$key]) ? \strlen($this->values[$key]->json()) : 0;
        }
        \arsort($sizes);
        $key = \array_key_first($sizes);
        return $key === null ? '' : "; the largest change is \"$key\" with {$sizes[$key]} bytes";
    }

    /**
     * Throws the error of a write that the session cannot take, to the statement that sends the head.
     */
    private function refuse(string $reason): string
    {
        if ($this->isFinishing) {
            return $this->fail(500, $reason);
        }
        $this->hasFailed = true;
        if (!\headers_sent()) {
            \http_response_code(500);
            \header_remove('Location');
            \header_remove('Content-Length');
        }
        throw new SessionError($reason);
    }

    /**
     * Ends the request with this status.
     *
     * @return never
     */
    private function fail(int $status, string $reason)
    {
        $this->hasFailed = true;
        \error_log("Cloakroom: $reason");
        if (\headers_sent()) {
            exit;
        }
        foreach (['Location', 'Content-Length', 'X-Session-Patch', 'Set-Cookie', 'ETag', 'Last-Modified'] as $name) {
            \header_remove($name);
        }
        \http_response_code($status);
        \header('Cache-Control: no-store');
        if ($status === 503) {
            \header('Retry-After: 2');
        }
        if ($this->isLeaving) {
            exit; // what was to follow the head is cut off
        }
        $this->dropOutput();
        \header('Content-Type: text/plain; charset=utf-8');
        exit($status === 403 ? "Forbidden\n" : ($status === 503 ? "Service unavailable\n" : "Internal server error\n"));
    }

    private function dropOutput(): void
    {
        while (\ob_get_level() > 0 && @\ob_end_clean()) {
            continue;
        }
    }

    // Keys and ids.

    /**
     * Returns what the keys of the open name begin with. Two names on one host are two sessions of PHP.
     */
    private function prefix(): string
    {
        return $this->name === null || $this->name === $this->mainName ? '' : 'php:' . \rawurlencode($this->name) . ':';
    }

    /** Returns the key in $_SESSION, unless it is of another name. */
    private function keyOf(string $full): ?string
    {
        $prefix = $this->prefix();
        if ($prefix !== '') {
            return \str_starts_with($full, $prefix) ? \substr($full, \strlen($prefix)) : null;
        }
        return \str_starts_with($full, 'php:') && !\str_starts_with($full, 'php::') ? null : $full;
    }

    /**
     * Returns the key in Cloakroom, and whether it stands for one that Cloakroom does not take.
     *
     * @return array{string, bool}
     */
    private function fullKey(string $key): array
    {
        $prefix = $this->prefix();
        $isReserved = \str_starts_with($key, $prefix === '' ? 'php:' : ':');
        if ($isReserved || $key === '' || \strlen($prefix . $key) > 256 || !\preg_match('//u', $key)) {
            return [($prefix === '' ? 'php:' : $prefix) . ':' . \sha1($key), true];
        }
        return [$prefix . $key, false];
    }

    /** PHP's own alphabet has a comma where Cloakroom's has an underscore, and applications check it. */
    private function shownId(): string
    {
        return \strtr($this->knownId(), '_', ',');
    }

    private function knownId(): string
    {
        if ($this->id === null) {
            $this->load();
        }
        if ($this->id === null) {
            $this->fetch();
        }
        if ($this->cookie !== null && !$this->isTrusted) {
            foreach (\array_keys($_COOKIE, $this->cookie, true) as $name) {
                $_COOKIE[$name] = \strtr($this->id, '_', ',');
            }
        }
        return $this->id;
    }

    private static function randomId(): string
    {
        return \rtrim(\strtr(\base64_encode(\random_bytes(16)), '+/', '-_'), '=');
    }

    /**
     * Returns the id after a rotation: 16 bytes, and a counter of two bytes if it is not zero.
     */
    private static function idAfter(string $id): string
    {
        $bytes = \base64_decode(\strtr($id, '-_', '+/'));
        $count = \strlen($bytes) === 18 ? \unpack('n', $bytes, 16)[1] : 0;
        $next = \substr($bytes, 0, 16) . \pack('n', \min($count + 1, 65535));
        return \rtrim(\strtr(\base64_encode($next), '+/', '-_'), '=');
    }
}

/**
 * What PHP's session module calls.
 *
 * @internal
 */
final class Handler implements \SessionHandlerInterface, \SessionIdInterface, \SessionUpdateTimestampHandlerInterface
{
    private Client $client;

    public function __construct(Client $client)
    {
        $this->client = $client;
    }

    public function open(string $path, string $name): bool
    {
        $this->client->open($name);
        return true;
    }

    public function close(): bool
    {
        $this->client->close();
        return true;
    }

    public function read(string $id): string
    {
        return $this->client->read();
    }

    public function write(string $id, string $data): bool
    {
        $this->client->take();
        return true;
    }

    public function updateTimestamp(string $id, string $data): bool
    {
        $this->client->take();
        return true;
    }

    public function destroy(string $id): bool
    {
        // session_regenerate_id(true) makes the same calls as session_destroy() and session_start().
        $caller = $this->caller();
        if ($caller === 'session_destroy') {
            $this->client->destroy();
        } elseif ($caller === 'session_start' || $caller === 'session_reset') {
            $this->client->keepUndecodable();
        }
        return true;
    }

    public function gc(int $max_lifetime): int
    {
        return 0;
    }

    public function create_sid(): string
    {
        switch ($this->caller()) {
            case 'session_regenerate_id':
                return $this->client->rotate();
            case 'session_create_id':
                return \bin2hex(\random_bytes(16));
            default:
                return $this->client->draw();
        }
    }

    public function validateId(string $id): bool
    {
        return $this->client->isId($id);
    }

    private function caller(): string
    {
        return \debug_backtrace(\DEBUG_BACKTRACE_IGNORE_ARGS, 3)[2]['function'] ?? '';
    }
}

/**
 * A value of the session: plain JSON, or PHP's serialization in a tagged object if JSON cannot hold it.
 *
 * @internal
 */
final class Value
{
    private const FLAGS = \JSON_UNESCAPED_SLASHES | \JSON_PRESERVE_ZERO_FRACTION;

    /** Whether the site was not given the value, which then stays as it is. */
    public bool $isHidden = false;
    /** Why it is hidden, or was. */
    private ?string $reason = null;
    /** @var ?array{mixed, ?string} What decode() has returned. */
    private ?array $trial = null;

    /** @var mixed */
    private $plain;
    private ?string $raw;
    /**
     * The plain value with its objects as objects, as it was loaded: an array of PHP tells neither {} from [] nor
     * {"0": 1} from [1].
     *
     * @var mixed
     */
    private $shape;
    /** Whether the value is the member "json" of a tagged object. */
    private bool $isTagged;

    /**
     * @param mixed $plain
     * @param mixed $shape
     */
    private function __construct($plain, ?string $raw, $shape = null, bool $isTagged = false)
    {
        $this->plain = $plain;
        $this->raw = $raw;
        $this->shape = $shape;
        $this->isTagged = $isTagged;
    }

    /**
     * @param mixed $value
     * @param mixed $shape
     */
    public static function loaded($value, $shape): self
    {
        $tag = \is_array($value) && \count($value) === 1 ? ($value['$cloakroom'] ?? null) : null;
        $raw = \is_array($tag) ? ($tag['php'] ?? null) : null;
        if (\is_string($raw) && \is_string($raw = \base64_decode($raw, true))) {
            return new self(null, $raw);
        }
        if (\is_array($tag) && \count($tag) === 1 && \is_array($tag['json'] ?? null)) {
            return new self($tag['json'], null, $shape->{'$cloakroom'}->json ?? null, true);
        }
        return new self($value, null, $shape);
    }

    /**
     * Returns the value, as the one before if it has not changed.
     *
     * @param mixed $value
     */
    public static function of($value, ?self $before, ?string $escapedKey): self
    {
        if ($escapedKey === null && $before !== null && $before->raw === null && $before->plain === $value) {
            return $before;
        }
        $references = [];
        if ($escapedKey === null && self::isPlain($value, $references, 0)) {
            $shape = $before === null ? null : self::shape($value, $before->shape);
            return new self($value, null, $shape, \is_array($value) && \array_key_exists('$cloakroom', $value));
        }
        $raw = \serialize($escapedKey === null ? $value : [$escapedKey => $value]);
        if ($before !== null && $before->raw === $raw) {
            return $before;
        }
        return new self(null, $raw);
    }

    /**
     * Returns the shape before as far as the value still has it: an object stays one unless its array was replaced by
     * a list that has none of its members.
     *
     * @param mixed $value
     * @param mixed $before
     * @return mixed
     */
    private static function shape($value, $before)
    {
        if (!\is_array($value) || (!\is_object($before) && !\is_array($before))) {
            return null;
        }
        $members = (array) $before;
        $kept = \array_intersect_key($members, $value);
        if (\is_object($before) && self::isList($value) && $value !== [] && $kept === []) {
            return null;
        }
        foreach ($kept as $key => $member) {
            $kept[$key] = self::shape($value[$key], $member);
        }
        return \is_object($before) ? (object) $kept : $kept;
    }

    /**
     * Returns the JSON of a value, with what is an object in its shape as an object.
     *
     * @param mixed $value
     * @param mixed $shape
     */
    private static function shaped($value, $shape): string
    {
        if (!\is_array($value) || (!\is_object($shape) && !\is_array($shape))) {
            return self::encode($value);
        }
        $isMap = \is_object($shape) || !self::isList($value);
        $members = (array) $shape;
        $parts = [];
        foreach ($value as $key => $member) {
            $text = self::shaped($member, $members[$key] ?? null);
            $parts[] = $isMap ? self::encode((string) $key) . ':' . $text : $text;
        }
        return $isMap ? '{' . \implode(',', $parts) . '}' : '[' . \implode(',', $parts) . ']';
    }

    public static function encode($value): string
    {
        // A header cannot have a DEL, which json_encode() does not escape.
        return \str_replace("\x7f", '\u007f', \json_encode($value, self::FLAGS | \JSON_THROW_ON_ERROR, 1024));
    }

    public function json(): string
    {
        if ($this->raw !== null) {
            return '{"$cloakroom":{"php":"' . \base64_encode($this->raw) . '"}}';
        }
        $json = self::shaped($this->plain, $this->shape);
        return $this->isTagged ? "{\"\$cloakroom\":{\"json\":$json}}" : $json;
    }

    public function isEmpty(): bool
    {
        return $this->raw === null && ($this->plain === null || $this->plain === []);
    }

    /**
     * Returns the value without objects of the site's classes.
     *
     * @return mixed
     */
    public function inert()
    {
        return $this->raw === null ? $this->plain : @\unserialize($this->raw, ['allowed_classes' => false]);
    }

    /**
     * Returns the key in `$_SESSION`, and key and value as PHP serializes them, or null if the site must not have them.
     *
     * @param int $slots how many values PHP has counted so far, for its back-references
     * @return ?array{int|string, string}
     */
    public function serialized(string $key, int &$slots, bool $isPhp): ?array
    {
        $this->isHidden = false;
        $key = \array_key_first([$key => 0]); // "5" is 5 in an array
        $isEscaped = \preg_match('/^(php:)?:[0-9a-f]{40}$/D', (string) $key) === 1;
        if ($this->raw === null) {
            $count = 1 + (\is_array($this->plain) ? \count($this->plain, \COUNT_RECURSIVE) : 0);
            $text = \serialize($this->plain);
        } else {
            $found = self::shift($this->raw, $isEscaped ? $slots - 1 : $slots);
            $allowed = Client::setting('PHP_CLASSES') ?: '*';
            $allowed = $allowed === '*' ? null : \array_map('strtolower', \explode(':', $allowed));
            if ($found === null) {
                return $this->hide($key, 'its serialization is malformed');
            }
            [$text, $count, $classes] = $found;
            $refused = $allowed === null ? [] : \array_diff($classes, $allowed);
            if ($refused) {
                return $this->hide($key, 'CLOAKROOM_CLIENT_PHP_CLASSES does not have ' . \implode(', ', $refused));
            }
            if ($allowed !== null && $found[3]) {
                return $this->hide($key, 'CLOAKROOM_CLIENT_PHP_CLASSES is set, and a class in it has a format of its own');
            }
            // One value that PHP cannot decode would make it drop the whole session.
            $this->trial ??= self::decode($this->raw);
            [$value, $error] = $this->trial;
            if ($error !== null) {
                return $this->hide($key, "PHP cannot decode it: $error");
            }
            if ($isEscaped) {
                $inner = \is_array($value) && \count($value) === 1 ? \array_key_first($value) : null;
                $head = 'a:1:{' . \serialize($inner);
                if ($inner === null || !\str_starts_with($text, $head)) {
                    return $this->hide($key, 'its serialization is malformed');
                }
                [$key, $text, $count] = [$inner, \substr($text, \strlen($head), -1), $count - 1];
            }
        }
        if ($isPhp && \preg_match('/^!|\|/', (string) $key)) {
            return $this->hide($key, 'session.serialize_handler = php cannot hold its key');
        }
        $slots += $count;
        return [$key, ($isPhp ? "$key|" : \serialize($key)) . $text];
    }

    /** @param int|string $key */
    private function hide($key, string $reason): ?array
    {
        $this->isHidden = true;
        if ($this->reason !== $reason) {
            \error_log("Cloakroom: \$_SESSION['$key'] is not loaded: $reason");
        }
        $this->reason = $reason;
        return null;
    }

    /**
     * Decodes a value, and returns it and why PHP cannot decode it. The caller keeps the value: its objects' destructors
     * run at the end of the request, not now.
     *
     * @return array{mixed, ?string}
     */
    private static function decode(string $raw): array
    {
        $reason = 'it is malformed';
        \set_error_handler(static function (int $level, string $text) use (&$reason): bool {
            $reason = \str_replace('unserialize(): ', '', $text);
            return true;
        });
        try {
            $value = \unserialize($raw);
            return [$value, $value === false && $raw !== 'b:0;' ? $reason : null];
        } catch (\Throwable $error) {
            return [null, \get_class($error) . ': ' . $error->getMessage()];
        } finally {
            \restore_error_handler();
        }
    }

    /**
     * Returns how a patch turns a value into this one: the member of the patch, and the JSON in it.
     *
     * @return array{string, string}
     */
    public function change(?self $old): array
    {
        $isPlain = !$this->isForeign() && ($old === null || !$old->isForeign());
        if ($isPlain && \is_array($this->plain) && ($this->plain !== [] || \is_object($this->shape))) {
            $before = $old === null ? [] : $old->plain;
            $shape = $old === null ? null : $old->shape;
            if (!\is_array($before)) {
                return ['set', $this->json()];
            }
            $isMap = self::isMap($this->plain, $this->shape);
            if (!$isMap && !self::isMap($before, $shape)) {
                $count = \count($before);
                if (\count($this->plain) > $count && \array_slice($this->plain, 0, $count) === $before) {
                    return ['append', self::encode(\array_slice($this->plain, $count))];
                }
            } elseif ($isMap && ($old === null || $before === [] || self::isMap($before, $shape))) {
                $merge = self::merge($before, $this->plain, $shape, $this->shape);
                if ($merge !== null) {
                    return ['merge', $merge];
                }
            }
        }
        return ['set', $this->json()];
    }

    /** Whether a client keeps something in the value that its members do not show, such as Flask's tags. */
    private function isForeign(): bool
    {
        if ($this->raw !== null || $this->isTagged) {
            return true;
        }
        $key = \is_array($this->plain) && \count($this->plain) === 1 ? (string) \array_key_first($this->plain) : '';
        return $key === '$cloakroom' || \str_starts_with($key, ' ');
    }

    /**
     * Returns the merge patch (RFC 7396) between two arrays, or null if there is none, or one that leaves them in
     * another order: PHP's arrays have one.
     *
     * @param mixed $oldShape
     * @param mixed $newShape
     */
    private static function merge(array $old, array $new, $oldShape, $newShape): ?string
    {
        $changes = [];
        $result = $old;
        [$oldShapes, $newShapes] = [(array) $oldShape, (array) $newShape];
        foreach ($new as $key => $value) {
            if (\array_key_exists($key, $old) && $old[$key] === $value) {
                continue;
            }
            if (self::hasNull($value)) {
                return null;
            }
            $before = $old[$key] ?? null;
            [$shapeBefore, $shape] = [$oldShapes[$key] ?? null, $newShapes[$key] ?? null];
            if (\is_array($before) && $before !== [] && self::isMap($value, $shape)) {
                if (!self::isMap($before, $shapeBefore)) {
                    return null; // a merge into a list
                }
                $change = self::merge($before, $value, $shapeBefore, $shape);
                if ($change === null) {
                    return null;
                }
            } else {
                $change = self::shaped($value, $shape);
            }
            $changes[] = self::encode((string) $key) . ':' . $change;
            $result[$key] = $value;
        }
        foreach (\array_diff_key($old, $new) as $key => $_) {
            $changes[] = self::encode((string) $key) . ':null';
            unset($result[$key]);
        }
        return $result === $new && $changes !== [] ? '{' . \implode(',', $changes) . '}' : null;
    }

    /** @param mixed $value */
    private static function hasNull($value): bool
    {
        if (\is_array($value)) {
            foreach ($value as $member) {
                if (self::hasNull($member)) {
                    return true;
                }
            }
        }
        return $value === null;
    }

    /**
     * Returns whether a value is an object in JSON.
     *
     * @param mixed $value
     * @param mixed $shape
     */
    private static function isMap($value, $shape): bool
    {
        return \is_array($value) && (\is_object($shape) || !self::isList($value));
    }

    /** array_is_list() is PHP 8.1. */
    private static function isList(array $value): bool
    {
        $next = 0;
        foreach ($value as $key => $_) {
            if ($key !== $next++) {
                return false;
            }
        }
        return true;
    }

    /**
     * Returns whether JSON gives back the identical value.
     *
     * @param mixed $value
     * @param array<string, true> $references
     */
    private static function isPlain($value, array &$references, int $depth): bool
    {
        if (\is_array($value)) {
            foreach ($value as $key => $member) {
                // A reference alone is a leftover of foreach by reference; two are one variable.
                $reference = \ReflectionReference::fromArrayElement($value, $key);
                if ($reference !== null) {
                    $id = $reference->getId();
                    if (isset($references[$id])) {
                        return false;
                    }
                    $references[$id] = true;
                }
                // Parsers of JSON stop at 128.
                if ($depth > 100 || (\is_string($key) && !\preg_match('//u', $key))) {
                    return false;
                }
                if (!self::isPlain($member, $references, $depth + 1)) {
                    return false;
                }
            }
            return true;
        }
        if (\is_string($value)) {
            return \preg_match('//u', $value) === 1;
        }
        return $value === null || \is_bool($value) || \is_int($value) || (\is_float($value) && \is_finite($value));
    }

    /**
     * Moves the back-references of serialized text by an offset, since PHP counts all values of a session together.
     *
     * @return ?array{string, int, string[], bool} the text, how many values it has, its classes in lower case, and
     *                                             whether one has a format of its own; null if it is malformed
     */
    private static function shift(string $raw, int $offset): ?array
    {
        // Not S, which serialize() does not write: its length is that of the text without escapes.
        $token = '/\G(?:N;|b:[01];|i:[+-]?\d{1,20};|d:[+-]?[\dA-Z.][\dA-ZeE.+-]{0,39};'
            . '|(?<reference>[rR]):(?<target>\d{1,9});|(?<text>[sE]):(?<length>\d{1,9}):"'
            . '|a:(?<members>\d{1,9}):\{|(?<object>[OC]):(?<size>\d{1,9}):")/';
        [$text, $slots, $classes, $hasOwnFormat, $at, $open] = ['', 0, [], false, 0, []];
        do {
            if (!\preg_match($token, $raw, $match, \PREG_UNMATCHED_AS_NULL, $at)) {
                return null;
            }
            // Keys and values alternate; $open counts down what is left of each array.
            $isKey = $open !== [] && \end($open) % 2 === 0;
            $slots += $isKey || $match['reference'] === 'R' ? 0 : 1;
            $start = $at;
            $at += \strlen($match[0]);
            $members = null;
            if ($match['reference'] !== null) {
                $text .= "{$match['reference']}:" . ((int) $match['target'] + $offset) . ';';
                $start = $at;
            } elseif ($match['text'] !== null) {
                if ($match['text'] === 'E') {
                    $classes[] = \strtolower(\strtok(\substr($raw, $at, (int) $match['length']), ':'));
                }
                $at += (int) $match['length'] + 2;
                if (\substr($raw, $at - 2, 2) !== '";') {
                    return null;
                }
            } elseif ($match['object'] !== null) {
                $classes[] = \strtolower(\substr($raw, $at, (int) $match['size']));
                $at += (int) $match['size'];
                if (!\preg_match('/\G":(\d{1,9}):\{/', $raw, $head, 0, $at)) {
                    return null;
                }
                $at += \strlen($head[0]);
                if ($match['object'] === 'O') {
                    $members = (int) $head[1];
                } else {
                    $at += (int) $head[1] + 1; // which may have more classes in it
                    $hasOwnFormat = true;
                }
            } elseif ($match['members'] !== null) {
                $members = (int) $match['members'];
            }
            $text .= \substr($raw, $start, $at - $start);
            if ($open !== []) {
                $open[] = \array_pop($open) - 1;
            }
            if ($members !== null) {
                $open[] = 2 * $members;
            }
            while ($open !== [] && \end($open) === 0) {
                if (($raw[$at] ?? '') !== '}') {
                    return null;
                }
                $text .= '}';
                $at++;
                \array_pop($open);
            }
        } while ($open !== []);
        return $at === \strlen($raw) ? [$text, $slots, \array_unique($classes), $hasOwnFormat] : null;
    }
}

/**
 * The session API, over one connection per request of the site.
 *
 * @internal
 */
final class Api
{
    private const CONNECT_SECONDS = 1.0;
    private const ANSWER_SECONDS = 10;

    private string $url;
    private string $token;
    /** @var ?resource */
    private $stream = null;
    private string $buffer = '';

    public function __construct(string $url, string $token)
    {
        $this->url = $url;
        $this->token = $token;
    }

    /**
     * Returns status and body.
     *
     * @return array{int, string}
     */
    public function call(string $method, ?string $body): array
    {
        // Handlers of the application would see warnings that are handled here.
        \set_error_handler(static fn () => true);
        try {
            $this->disconnectIfClosed();
            $isKept = $this->stream !== null;
            try {
                return $this->exchange($method, $body);
            } catch (NoAnswer $error) {
                $this->disconnect();
                // A write that was sent whole may have happened.
                if (!$isKept || ($method !== 'GET' && $error->isSent)) {
                    throw new SessionError($error->getMessage());
                }
            }
            // The server has closed the kept connection before it got the request.
            try {
                return $this->exchange($method, $body);
            } catch (NoAnswer $error) {
                throw new SessionError($error->getMessage());
            }
        } catch (SessionError $error) {
            $this->disconnect();
            throw $error;
        } finally {
            \restore_error_handler();
        }
    }

    private function exchange(string $method, ?string $body): array
    {
        [$address, $host, $path] = $this->target();
        $deadline = \microtime(true) + self::ANSWER_SECONDS;
        if ($this->stream === null) {
            $stream = \stream_socket_client($address, $errno, $reason, self::CONNECT_SECONDS);
            if ($stream === false) {
                throw new SessionError("cannot connect to $this->url: $reason");
            }
            $this->stream = $stream;
            $this->buffer = '';
            \stream_set_timeout($this->stream, self::ANSWER_SECONDS);
        }
        $lines = ["$method $path HTTP/1.1", "Host: $host", "X-Session-Token: $this->token"];
        if ($body !== null) {
            $lines[] = 'Content-Type: application/json';
            $lines[] = 'Content-Length: ' . \strlen($body);
        }
        $request = \implode("\r\n", $lines) . "\r\n\r\n" . $body;
        while ($request !== '') {
            $written = \fwrite($this->stream, $request);
            if ($written === false || $written === 0) {
                throw new NoAnswer('the connection was closed', false);
            }
            $request = \substr($request, $written);
        }
        while (($end = \strpos($this->buffer, "\r\n\r\n")) === false) {
            if (!$this->receive($deadline)) {
                if ($this->buffer === '') {
                    throw new NoAnswer('the connection was closed', true);
                }
                throw new SessionError('the response ended early');
            }
        }
        $head = \substr($this->buffer, 0, $end + 2);
        $this->buffer = \substr($this->buffer, $end + 4);
        if (!\preg_match('!^HTTP/1\.1 (\d{3})!', $head, $status)) {
            throw new SessionError('the response is not HTTP/1.1');
        }
        $length = \preg_match('/^Content-Length:[ \t]*(\d+)[ \t]*\r$/mi', $head, $match) ? (int) $match[1] : null;
        if ($length === null && $status[1] !== '204') {
            throw new SessionError('the response has no Content-Length');
        }
        while (\strlen($this->buffer) < (int) $length) {
            if (!$this->receive($deadline)) {
                throw new SessionError('the response ended early');
            }
        }
        $content = \substr($this->buffer, 0, (int) $length);
        $this->buffer = \substr($this->buffer, (int) $length);
        if (\preg_match('/^Connection:.*\bclose\b/mi', $head)) {
            $this->disconnect();
        }
        return [(int) $status[1], $content];
    }

    private function receive(float $deadline): bool
    {
        if (\microtime(true) > $deadline) {
            throw new SessionError('no answer within ' . self::ANSWER_SECONDS . ' s');
        }
        $read = \fread($this->stream, 65536);
        if (\stream_get_meta_data($this->stream)['timed_out']) {
            throw new SessionError('no answer within ' . self::ANSWER_SECONDS . ' s');
        }
        $this->buffer .= (string) $read;
        return $read !== false && $read !== '' || !\feof($this->stream);
    }

    /**
     * Gives up a kept connection that the server has closed: there is something to read, before any request.
     */
    private function disconnectIfClosed(): void
    {
        if ($this->stream !== null) {
            [$read, $none] = [[$this->stream], null];
            if (\stream_select($read, $none, $none, 0) !== 0) {
                $this->disconnect();
            }
        }
    }

    private function disconnect(): void
    {
        if ($this->stream !== null) {
            \fclose($this->stream);
        }
        $this->stream = null;
        $this->buffer = '';
    }

    /** @return array{string, string, string} the address of the socket, the host name, and the path */
    private function target(): array
    {
        if (\preg_match('!^http\+unix://([^/]+)(/.*)$!D', $this->url, $match)) {
            return ['unix://' . \rawurldecode($match[1]), 'localhost', $match[2]];
        }
        if (!\preg_match('!^(https?)://([^/:]+|\[[^/]+\])(:\d+)?(/.*)$!D', $this->url, $match)) {
            throw new SessionError("CLOAKROOM_CLIENT_URL is not valid: $this->url");
        }
        $isTls = $match[1] === 'https';
        $port = $match[3] ?: ($isTls ? ':443' : ':80');
        return [($isTls ? 'tls://' : 'tcp://') . $match[2] . $port, $match[2] . $match[3], $match[4]];
    }
}

/**
 * A connection that was closed before any answer.
 *
 * @internal
 */
final class NoAnswer extends \RuntimeException
{
    /** Whether the request was sent whole, so that the server may have it. */
    public bool $isSent;

    public function __construct(string $message, bool $isSent)
    {
        parent::__construct($message);
        $this->isSent = $isSent;
    }
}

Client::start();
