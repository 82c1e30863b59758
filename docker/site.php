<?php
// A site without sessions of its own. Each request from Cloakroom has the URL and the token of its session.

function session(string $method, string $path, ?array $body = null) {
    $context = stream_context_create(['http' => [
        'method' => $method,
        'header' => "X-Session-Token: {$_SERVER['HTTP_X_SESSION_TOKEN']}\r\nContent-Type: application/json",
        'content' => $body === null ? '' : json_encode($body),
        'timeout' => 5,
    ]]);
    return json_decode(file_get_contents($_SERVER['HTTP_X_SESSION_URL'] . $path, false, $context));
}

$path = parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH);
$posted = $_SERVER['REQUEST_METHOD'] === 'POST';

if ($path === '/login' && $posted) {
    // A real site would check a password here.
    session('PATCH', '', ['principal' => $_POST['name'] ?: 'nobody']);
    header('Location: /', true, 303);
    exit;
}
if ($path === '/logout' && $posted) {
    session('DELETE', '');
    header('Location: /', true, 303);
    exit;
}
if ($path !== '/') {
    http_response_code(404);
    exit('Page not found.');
}

$visits = session('POST', '/values/visits/increment');
$name = isset($_SERVER['HTTP_X_SESSION_PRINCIPAL']) ? rawurldecode($_SERVER['HTTP_X_SESSION_PRINCIPAL']) : null;
header('Content-Type: text/html; charset=utf-8');
?>
<!doctype html>
<title>A site with sessions</title>
<p>Hello <?= htmlspecialchars($name ?? 'stranger') ?>, visit <?= (int) $visits ?></p>
<?php if ($name === null): ?>
<form method="post" action="/login"><input name="name" placeholder="Your name" required> <button>Log in</button></form>
<?php else: ?>
<form method="post" action="/logout"><button>Log out</button></form>
<?php endif ?>
